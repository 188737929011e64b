// ReadOnlyDevice: the next device, of which nothing can be changed through this one.
//
// Its traits say read-only, so callers send no changes; those that do get EPERM, and Resize() is refused.
// Flush goes through: somebody else may have written.
#ifndef BERTH_IMAGE_FILTER_READ_ONLY_H_
#define BERTH_IMAGE_FILTER_READ_ONLY_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/filter/forwarding.h"

namespace berth {

class ReadOnlyDevice final : public ForwardingDevice {
 public:
  explicit ReadOnlyDevice(std::shared_ptr<BlockDevice> next);

  const BlockTraits& traits() const override { return traits_; }
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;
  absl::Status Resize(uint64_t new_size) override;

 private:
  const BlockTraits traits_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_FILTER_READ_ONLY_H_
