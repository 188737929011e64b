// RawChannel: the way to a raw image's bytes from one reactor.
#ifndef BERTH_IMAGE_RAW_RAW_CHANNEL_H_
#define BERTH_IMAGE_RAW_RAW_CHANNEL_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/io/blocking_pool.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/raw/raw_device.h"

namespace berth {

class RawChannel final : public BlockChannel {
 public:
  RawChannel(RawDevice& device, Reactor& reactor, BlockingPool& pool);

  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override;
  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override;
  Task<IoResult> Flush() override;
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override;
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override;
  Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override;
  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) override;

 private:
  bool Inside(uint64_t offset, uint64_t length) const {
    const uint64_t size = device_.size();
    return offset <= size && length <= size - offset;
  }
  Task<IoResult> FinishWrite(Task<IoResult> writing, uint64_t offset, absl::Span<const uint8_t> data,
                             bool durable, bool touches_tail);
  Task<IoResult> ZeroOrWrite(uint64_t offset, uint64_t length, ZeroFlags flags);
  Task<IoResult> ZeroSpace(uint64_t offset, uint64_t length, ZeroFlags flags);
  Task<IoResult> ZeroSpaceHeld(uint64_t offset, uint64_t length, bool may_unmap, bool fast_only);
  Task<IoResult> WriteZeroes(uint64_t offset, uint64_t length);
  Task<IoResult> DiscardSpace(uint64_t offset, uint64_t length);
  Task<IoResult> LookUpExtents(uint64_t offset, uint64_t length, std::vector<Extent>* out);

  RawDevice& device_;
  Reactor& reactor_;
  BlockingPool& pool_;
  const bool always_durable_;  // Every change is, when it completes.
  const bool fua_;             // What asks for it is.
};

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_RAW_CHANNEL_H_
