// ServedDevice: an image as qemu-nbd's clients see one.
//
// - Of the device's contexts those that were asked for (-A, -B), which must be there. An image that has
// nothing
//   below it (raw) is as deep as it is long: qemu:allocation-depth is 1 everywhere.
// - Trimming and fast zeroing are offered always, as qemu does; what the device cannot do is a trim that does
//   nothing, and ENOTSUP for a zeroing that must be fast.
#ifndef BERTH_CONTROL_BERTH_NBD_SERVED_DEVICE_H_
#define BERTH_CONTROL_BERTH_NBD_SERVED_DEVICE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "image/filter/forwarding.h"

namespace berth::control {

class ServedDevice final : public ForwardingDevice {
 public:
  // `flat`: nothing is below the image. NOT_FOUND names a context that the device has not.
  static absl::StatusOr<std::shared_ptr<ServedDevice>> Create(std::shared_ptr<BlockDevice> next, bool flat,
                                                              bool allocation_depth,
                                                              const std::vector<std::string>& bitmaps);

  const BlockTraits& traits() const override { return traits_; }
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;
  std::vector<std::shared_ptr<StatusContext>> contexts() const override { return contexts_; }

 private:
  ServedDevice(std::shared_ptr<BlockDevice> next, std::vector<std::shared_ptr<StatusContext>> contexts);

  const bool has_fast_zero_;
  BlockTraits traits_;
  const std::vector<std::shared_ptr<StatusContext>> contexts_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_SERVED_DEVICE_H_
