#include "image/raw/raw_channel.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "image/raw/file_extents.h"

namespace berth {
namespace {

constexpr uint64_t kZeroChunk = uint64_t{256} << 10;
// Never written. Not const, as a constant would take its bytes in the program file.
alignas(4096) uint8_t zeroes[kZeroChunk];

// The longest range that one Prefetch brings in.
constexpr uint64_t kLongestPrefetch = uint64_t{64} << 20;
static_assert(ExtentCache::kMostPieces + kMostFileExtents <= kMaxExtents);

}  // namespace

RawChannel::RawChannel(RawDevice& device, Reactor& reactor, BlockingPool& pool)
    : device_(device),
      reactor_(reactor),
      pool_(pool),
      always_durable_(device.flushes_.has_value() && WritesAreDurable(device.options_.cache)),
      fua_(device.flushes_.has_value()) {}

Task<IoResult> RawChannel::Read(uint64_t offset, absl::Span<uint8_t> out) {
  const uint64_t size = device_.size();
  if (offset > size || out.size() > size - offset) return Task<IoResult>(IoResult::Error(EIO));
  if (device_.direct_.has_value()) return device_.direct_->Read(reactor_, size, offset, out);
  return device_.file_.Read(reactor_, offset, out);
}

Task<IoResult> RawChannel::Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) {
  const uint64_t size = device_.size();
  if (offset > size || data.size() > size - offset) return Task<IoResult>(IoResult::Error(EIO));
  const bool durable = always_durable_ || (fua_ && flags == WriteFlags::kFua);
  const int rw_flags = durable ? RWF_DSYNC : 0;
  if (device_.direct_.has_value()) {
    DirectFile& direct = *device_.direct_;
    return FinishWrite(direct.Write(reactor_, size, offset, data, rw_flags), offset, data, durable,
                       direct.TouchesTail(size, offset, data.size()));
  }
  Task<IoResult> writing = device_.file_.Write(reactor_, offset, data, rw_flags);
  if (writing.await_ready()) {
    // It went to the page cache at once, the most frequent case: no frame for it.
    device_.extents_.Written(offset, data.size());
    if (Inside(offset, data.size())) return writing;
  }
  return FinishWrite(std::move(writing), offset, data, durable, false);
}

Task<IoResult> RawChannel::FinishWrite(Task<IoResult> writing, uint64_t offset,
                                       absl::Span<const uint8_t> data, bool durable, bool touches_tail) {
  IoResult result = co_await writing;
  bool flush = durable && touches_tail;
  if (durable && result.error == EOPNOTSUPP) {
    // A file system without RWF_DSYNC.
    result = co_await device_.file_.Write(reactor_, offset, data);
    flush = true;
  }
  device_.extents_.Written(offset, data.size());
  if (!Inside(offset, data.size())) {
    RawDevice* const device = &device_;
    const auto cut = [device] {
      device->CutAgain();
      return true;
    };
    co_await pool_.Run(reactor_, cut);
    co_return IoResult::Error(EIO);
  }
  if (result.ok() && flush) result = co_await Flush();
  co_return result;
}

Task<IoResult> RawChannel::Flush() {
  if (!device_.flushes_.has_value()) return Task<IoResult>(IoResult::Ok());
  return device_.flushes_->Flush(reactor_);
}

Task<IoResult> RawChannel::Zero(uint64_t offset, uint64_t length, ZeroFlags flags) {
  if (!Inside(offset, length)) return Task<IoResult>(IoResult::Error(EIO));
  return ZeroOrWrite(offset, length, flags);
}

Task<IoResult> RawChannel::ZeroOrWrite(uint64_t offset, uint64_t length, ZeroFlags flags) {
  IoResult result = co_await ZeroSpace(offset, length, flags);
  device_.extents_.Changed(offset, length);
  if (result.error == ENOTSUP && !Has(flags, ZeroFlags::kFastOnly)) {
    result = co_await WriteZeroes(offset, length);
  }
  const bool durable = always_durable_ || (fua_ && Has(flags, ZeroFlags::kFua));
  if (result.ok() && durable) result = co_await Flush();
  co_return result;
}

// Zeroes the range without writing it, but for the edges that the disk's blocks leave over.
Task<IoResult> RawChannel::ZeroSpace(uint64_t offset, uint64_t length, ZeroFlags flags) {
  const uint64_t block = device_.space_.granularity();
  const uint64_t end = offset + length;
  const uint64_t begin = (offset + block - 1) / block * block;
  const uint64_t stop = end / block * block;
  if (begin >= stop) co_return IoResult::Error(ENOTSUP);
  const bool may_unmap = !Has(flags, ZeroFlags::kNoUnmap) && device_.options_.discard == DiscardMode::kUnmap;
  IoResult result = co_await ZeroSpaceHeld(begin, stop - begin, may_unmap, Has(flags, ZeroFlags::kFastOnly));
  if (result.ok() && offset < begin) result = co_await WriteZeroes(offset, begin - offset);
  if (result.ok() && stop < end) result = co_await WriteZeroes(stop, end - stop);
  co_return result;
}

Task<IoResult> RawChannel::ZeroSpaceHeld(uint64_t offset, uint64_t length, bool may_unmap, bool fast_only) {
  if (!device_.direct_.has_value()) {
    co_return co_await device_.space_.Zero(reactor_, offset, length, may_unmap, fast_only);
  }
  RangeLock::Hold hold(&device_.direct_->ranges(), reactor_, offset, offset + length,
                       RangeLock::Kind::kShared);
  co_await hold;
  co_return co_await device_.space_.Zero(reactor_, offset, length, may_unmap, fast_only);
}

Task<IoResult> RawChannel::WriteZeroes(uint64_t offset, uint64_t length) {
  while (length > 0) {
    const uint64_t chunk = std::min(length, kZeroChunk);
    const IoResult result = co_await Write(offset, absl::MakeConstSpan(zeroes, chunk), WriteFlags::kNone);
    if (!result.ok()) co_return result;
    offset += chunk;
    length -= chunk;
    // In memory nothing else lets go of the reactor's thread.
    if (length > 0) co_await reactor_.Yield();
  }
  co_return IoResult::Ok();
}

Task<IoResult> RawChannel::Discard(uint64_t offset, uint64_t length) {
  if (!Inside(offset, length)) return Task<IoResult>(IoResult::Error(EIO));
  if (!device_.traits_.can_discard) return Task<IoResult>(IoResult::Ok());
  return DiscardSpace(offset, length);
}

Task<IoResult> RawChannel::DiscardSpace(uint64_t offset, uint64_t length) {
  IoResult result;
  if (device_.direct_.has_value()) {
    RangeLock::Hold hold(&device_.direct_->ranges(), reactor_, offset, offset + length,
                         RangeLock::Kind::kShared);
    co_await hold;
    result = co_await device_.space_.Discard(reactor_, offset, length);
  } else {
    result = co_await device_.space_.Discard(reactor_, offset, length);
  }
  device_.extents_.Changed(offset, length);
  if (result.ok() && always_durable_) result = co_await Flush();
  co_return result;
}

Task<IoResult> RawChannel::Prefetch(uint64_t offset, uint64_t length) {
  if (!Inside(offset, length)) return Task<IoResult>(IoResult::Error(EIO));
  if (device_.direct_.has_value() || device_.file_.in_memory()) return Task<IoResult>(IoResult::Ok());
  return [](BlockingPool& pool, Reactor& reactor, int fd, uint64_t begin, uint64_t bytes) -> Task<IoResult> {
    const auto advise = [fd, begin, bytes] {
      return posix_fadvise(fd, static_cast<off_t>(begin), static_cast<off_t>(bytes), POSIX_FADV_WILLNEED);
    };
    co_await pool.Run(reactor, advise);
    co_return IoResult::Ok();
  }(pool_, reactor_, device_.file_.fd(), offset, std::min(length, kLongestPrefetch));
}

Task<IoResult> RawChannel::Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) {
  if (!Inside(offset, length)) return Task<IoResult>(IoResult::Error(EIO));
  if (device_.facts_.is_block_device) {
    out->push_back({length, true, false});
    return Task<IoResult>(IoResult::Ok());
  }
  std::vector<Extent> known;
  if (device_.extents_.Find(offset, length, &known) == length) {
    out->insert(out->end(), known.begin(), known.end());
    return Task<IoResult>(IoResult::Ok());
  }
  return LookUpExtents(offset, length, out);
}

Task<IoResult> RawChannel::LookUpExtents(uint64_t offset, uint64_t length, std::vector<Extent>* out) {
  std::vector<Extent> extents;
  uint64_t covered = device_.extents_.Find(offset, length, &extents);
  if (covered < length) {
    const uint64_t begin = offset + covered;
    const ExtentCache::Look look(&device_.extents_);
    const uint64_t size = device_.size();
    if (size < offset + length) co_return IoResult::Error(EIO);
    std::vector<Extent> seen;
    const auto seek = [fd = device_.file_.fd(), begin, stop = offset + length, size, &seen] {
      return ReadFileExtents(fd, begin, stop, size, &seen);
    };
    const int error = co_await pool_.Run(reactor_, seek);
    // What the file system cannot tell is data.
    if (error != 0) seen.assign(1, {offset + length - begin, true, false});
    // Without a lock others may write what nobody announces.
    if (error == 0 && device_.options_.lock == LockMode::kExclusive) {
      device_.extents_.Remember(look, begin, seen);
    }
    for (const Extent& extent : seen) {
      if (covered == length) break;
      const uint64_t part = std::min(extent.length, length - covered);
      AppendExtent({part, extent.allocated, extent.zero}, &extents);
      covered += part;
    }
  }
  out->insert(out->end(), extents.begin(), extents.end());
  co_return IoResult::Ok();
}

}  // namespace berth
