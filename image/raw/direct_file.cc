#include "image/raw/direct_file.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace berth {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kBounceBytes = uint64_t{1} << 20;

struct FreeMemory {
  void operator()(uint8_t* memory) const { std::free(memory); }
};
using BounceBuffer = std::unique_ptr<uint8_t, FreeMemory>;

BounceBuffer AllocateBounce(uint64_t size, uint64_t alignment) {
  const uint64_t strictest = std::max(kPage, alignment);
  return BounceBuffer(
      static_cast<uint8_t*>(std::aligned_alloc(strictest, (size + strictest - 1) & ~(strictest - 1))));
}

}  // namespace

bool DirectFile::Aligned(uint64_t offset, const void* memory, uint64_t length) const {
  return ((offset | length) & (alignment_.offset - 1)) == 0 &&
         (reinterpret_cast<uintptr_t>(memory) & (alignment_.memory - 1)) == 0;
}

uint64_t DirectFile::TailBegin(uint64_t size) const {
  if ((size & (alignment_.offset - 1)) == 0) return size;
  return size & ~(std::max<uint64_t>(kPage, alignment_.offset) - 1);
}

Task<IoResult> DirectFile::Read(Reactor& reactor, uint64_t size, uint64_t offset, absl::Span<uint8_t> out) {
  const uint64_t tail = TailBegin(size);
  if (offset + out.size() > tail) return ReadSplit(reactor, tail, offset, out);
  if (Aligned(offset, out.data(), out.size())) return direct_.Read(reactor, offset, out);
  return ReadBounced(reactor, offset, out);
}

Task<IoResult> DirectFile::ReadSplit(Reactor& reactor, uint64_t tail, uint64_t offset,
                                     absl::Span<uint8_t> out) {
  if (offset < tail) {
    const IoResult result = co_await ReadBounced(reactor, offset, out.subspan(0, tail - offset));
    if (!result.ok()) co_return result;
    out.remove_prefix(tail - offset);
    offset = tail;
  }
  co_return co_await cached_.Read(reactor, offset, out);
}

Task<IoResult> DirectFile::ReadBounced(Reactor& reactor, uint64_t offset, absl::Span<uint8_t> out) {
  const uint64_t span = RoundUp(offset + out.size()) - RoundDown(offset);
  const BounceBuffer bounce = AllocateBounce(std::min(span, kBounceBytes), alignment_.memory);
  if (bounce == nullptr) co_return IoResult::Error(ENOMEM);
  while (!out.empty()) {
    const uint64_t begin = RoundDown(offset);
    const uint64_t end = std::min(RoundUp(offset + out.size()), begin + kBounceBytes);
    const IoResult result = co_await direct_.Read(reactor, begin, absl::MakeSpan(bounce.get(), end - begin));
    if (!result.ok()) co_return result;
    const uint64_t count = std::min<uint64_t>(out.size(), end - offset);
    std::memcpy(out.data(), bounce.get() + (offset - begin), count);
    out.remove_prefix(count);
    offset += count;
  }
  co_return IoResult::Ok();
}

Task<IoResult> DirectFile::Write(Reactor& reactor, uint64_t size, uint64_t offset,
                                 absl::Span<const uint8_t> data, int rw_flags) {
  const uint64_t tail = TailBegin(size);
  const bool whole_blocks = ((offset | data.size()) & (alignment_.offset - 1)) == 0;
  const RangeLock::Kind kind = whole_blocks ? RangeLock::Kind::kShared : RangeLock::Kind::kExclusive;
  // The tail is held as a page, as what caches it writes back whole pages.
  const uint64_t end = offset + data.size();
  const uint64_t begin = end > tail ? std::min(RoundDown(offset), tail) : RoundDown(offset);
  RangeLock::Hold hold(&ranges_, reactor, begin, std::max(RoundUp(end), end > tail ? tail + kPage : 0), kind);
  co_await hold;
  if (end > tail) co_return co_await WriteSplit(reactor, tail, offset, data, rw_flags);
  if (Aligned(offset, data.data(), data.size())) {
    co_return co_await direct_.Write(reactor, offset, data, rw_flags);
  }
  co_return co_await WriteBounced(reactor, offset, data, rw_flags);
}

Task<IoResult> DirectFile::WriteSplit(Reactor& reactor, uint64_t tail, uint64_t offset,
                                      absl::Span<const uint8_t> data, int rw_flags) {
  if (offset < tail) {
    const IoResult result = co_await WriteBounced(reactor, offset, data.subspan(0, tail - offset), rw_flags);
    if (!result.ok()) co_return result;
    data.remove_prefix(tail - offset);
    offset = tail;
  }
  co_return co_await cached_.Write(reactor, offset, data);
}

Task<IoResult> DirectFile::WriteBounced(Reactor& reactor, uint64_t offset, absl::Span<const uint8_t> data,
                                        int rw_flags) {
  const uint64_t span = RoundUp(offset + data.size()) - RoundDown(offset);
  const uint64_t size = std::min(span, std::max<uint64_t>(kBounceBytes, alignment_.offset));
  const BounceBuffer bounce = AllocateBounce(size, alignment_.memory);
  if (bounce == nullptr) co_return IoResult::Error(ENOMEM);
  while (!data.empty()) {
    const uint64_t count = std::min<uint64_t>(data.size(), RoundDown(offset) + size - offset);
    const IoResult result = co_await WriteChunk(reactor, offset, data.subspan(0, count),
                                                absl::MakeSpan(bounce.get(), size), rw_flags);
    if (!result.ok()) co_return result;
    data.remove_prefix(count);
    offset += count;
  }
  co_return IoResult::Ok();
}

Task<IoResult> DirectFile::WriteChunk(Reactor& reactor, uint64_t offset, absl::Span<const uint8_t> data,
                                      absl::Span<uint8_t> bounce, int rw_flags) {
  const uint64_t begin = RoundDown(offset);
  const uint64_t end = RoundUp(offset + data.size());
  const uint64_t block = alignment_.offset;
  bounce = bounce.subspan(0, end - begin);
  if (offset != begin) {
    const IoResult result = co_await direct_.Read(reactor, begin, bounce.subspan(0, block));
    if (!result.ok()) co_return result;
  }
  // The last block, unless it is the first and has just been read.
  if (offset + data.size() != end && (offset == begin || end - begin > block)) {
    const IoResult result =
        co_await direct_.Read(reactor, end - block, bounce.subspan(end - block - begin, block));
    if (!result.ok()) co_return result;
  }
  std::memcpy(bounce.data() + (offset - begin), data.data(), data.size());
  co_return co_await direct_.Write(reactor, begin, bounce, rw_flags);
}

}  // namespace berth
