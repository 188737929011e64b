#include "image/raw/raw_channel.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>

namespace berth {
namespace {

constexpr uint64_t kZeroChunk = uint64_t{256} << 10;
alignas(4096) uint8_t zeroes[kZeroChunk];

}  // namespace

Task<IoResult> RawChannel::Read(uint64_t offset, absl::Span<uint8_t> out) {
  if (!Inside(offset, out.size())) return Task<IoResult>(IoResult::Error(EIO));
  return device_.file_.Read(reactor_, offset, out);
}

Task<IoResult> RawChannel::Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) {
  if (!Inside(offset, data.size())) return Task<IoResult>(IoResult::Error(EIO));
  const CacheMode mode = device_.options_.cache;
  const bool durable = WritesAreDurable(mode) || (flags == WriteFlags::kFua && mode != CacheMode::kUnsafe);
  return device_.file_.Write(reactor_, offset, data, durable ? RWF_DSYNC : 0);
}

Task<IoResult> RawChannel::Flush() {
  if (device_.options_.cache == CacheMode::kUnsafe) return Task<IoResult>(IoResult::Ok());
  return [](RawDevice& device, Reactor& reactor) -> Task<IoResult> {
    if (device.flush_failed_.load()) co_return IoResult::Error(EIO);
    const IoResult result = co_await device.file_.Sync(reactor);
    if (!result.ok()) device.flush_failed_.store(true);
    co_return result;
  }(device_, reactor_);
}

Task<IoResult> RawChannel::Zero(uint64_t offset, uint64_t length, ZeroFlags flags) {
  if (!Inside(offset, length)) return Task<IoResult>(IoResult::Error(EIO));
  if (Has(flags, ZeroFlags::kFastOnly)) return Task<IoResult>(IoResult::Error(ENOTSUP));
  return WriteZeroes(offset, length, flags);
}

Task<IoResult> RawChannel::WriteZeroes(uint64_t offset, uint64_t length, ZeroFlags flags) {
  const WriteFlags how = Has(flags, ZeroFlags::kFua) ? WriteFlags::kFua : WriteFlags::kNone;
  while (length > 0) {
    const uint64_t chunk = std::min(length, kZeroChunk);
    const IoResult result = co_await Write(offset, absl::MakeConstSpan(zeroes, chunk), how);
    if (!result.ok()) co_return result;
    offset += chunk;
    length -= chunk;
  }
  co_return IoResult::Ok();
}

Task<IoResult> RawChannel::Discard(uint64_t, uint64_t) { return Task<IoResult>(IoResult::Ok()); }

Task<IoResult> RawChannel::Prefetch(uint64_t, uint64_t) { return Task<IoResult>(IoResult::Ok()); }

Task<IoResult> RawChannel::Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) {
  if (!Inside(offset, length)) return Task<IoResult>(IoResult::Error(EIO));
  out->push_back(Extent{length, true, false});
  return Task<IoResult>(IoResult::Ok());
}

}  // namespace berth
