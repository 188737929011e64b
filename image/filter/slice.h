// SliceDevice: a part of the next device, shown as a whole one.
//
// A slice of a fixed length keeps it: it cannot be resized, and where the next device shrinks below its end,
// requests past that end fail with EIO. A slice up to the end (length 0) follows the next device: its size is
// what there is behind the offset now, and Resize() resizes the next device so that the slice has the size
// that was asked for.
#ifndef BERTH_IMAGE_FILTER_SLICE_H_
#define BERTH_IMAGE_FILTER_SLICE_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/filter/forwarding.h"

namespace berth {

class SliceDevice final : public ForwardingDevice {
 public:
  // `offset` and `length` in bytes; a length of 0 means up to the end. OUT_OF_RANGE, with all the numbers,
  // where the slice does not lie inside the device.
  static absl::StatusOr<std::unique_ptr<SliceDevice>> Create(std::shared_ptr<BlockDevice> next,
                                                             uint64_t offset, uint64_t length);

  const BlockTraits& traits() const override { return traits_; }
  uint64_t size() const override;
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;
  std::vector<std::shared_ptr<StatusContext>> contexts() const override;
  absl::Status Resize(uint64_t new_size) override;

 private:
  SliceDevice(std::shared_ptr<BlockDevice> next, uint64_t offset, uint64_t length);

  const uint64_t offset_;
  const uint64_t length_;  // 0: up to the end.
  const BlockTraits traits_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_FILTER_SLICE_H_
