// MemoryDevice: a sparse image in memory, gone with its object. For tests and benchmarks.
//
// Memory: pages of 4 KiB that were written, and a 500th part of that for finding them; Zero and Discard give
// pages back. A write for which the system has no memory fails with ENOMEM. Flush and FUA promise what memory
// can: all channels see what was written.
//
// Any number of channels on any reactors work on it at once.
#ifndef BERTH_IMAGE_MEMORY_MEMORY_DEVICE_H_
#define BERTH_IMAGE_MEMORY_MEMORY_DEVICE_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/io/mutex.h"
#include "image/memory/sparse_pages.h"

namespace berth {

class MemoryDevice final : public BlockDevice {
 public:
  // An image of `size` bytes, all zero. INVALID_ARGUMENT past 16 TiB.
  static absl::StatusOr<std::unique_ptr<MemoryDevice>> Create(uint64_t size);

  const BlockTraits& traits() const override { return traits_; }
  uint64_t size() const override { return pages_.size(); }
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;
  absl::Status Resize(uint64_t new_size) override;

  // Bytes of memory that hold data now.
  uint64_t allocated_bytes() const { return pages_.allocated_bytes(); }

 private:
  explicit MemoryDevice(uint64_t size);

  const BlockTraits traits_;
  SparsePages pages_;
  Mutex resizing_;  // One Resize() at a time.
};

}  // namespace berth

#endif  // BERTH_IMAGE_MEMORY_MEMORY_DEVICE_H_
