// NullDevice: reads zeroes and forgets writes. For benchmarks of everything above an image, and for tests.
#ifndef BERTH_IMAGE_NULL_NULL_DEVICE_H_
#define BERTH_IMAGE_NULL_NULL_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/block/block_device.h"

namespace berth {

class NullDevice final : public BlockDevice {
 public:
  explicit NullDevice(uint64_t size);

  const BlockTraits& traits() const override { return traits_; }
  uint64_t size() const override { return size_.load(std::memory_order_relaxed); }
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;
  absl::Status Resize(uint64_t new_size) override;

 private:
  const BlockTraits traits_;
  std::atomic<uint64_t> size_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_NULL_NULL_DEVICE_H_
