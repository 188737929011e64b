// AllocationDepth: the status context "qemu:allocation-depth": in which image of a chain each byte lies.
//
// 1 is the image itself, 2 its backing image and so on; 0 is in none. Zeroes that an image has because the
// one below it is too short lie in that one.
#ifndef BERTH_IMAGE_QCOW2_ALLOCATION_DEPTH_H_
#define BERTH_IMAGE_QCOW2_ALLOCATION_DEPTH_H_

#include <memory>

#include "absl/status/statusor.h"
#include "image/block/status_context.h"
#include "image/io/reactor.h"
#include "image/qcow2/qcow2_device.h"

namespace berth {

inline constexpr char kAllocationDepth[] = "qemu:allocation-depth";

// Thread and lifetime: as StatusContext.
class AllocationDepth final : public StatusContext {
 public:
  explicit AllocationDepth(Qcow2Device* device)
      : StatusContext(kAllocationDepth, /*wide=*/false), device_(device) {}

  absl::StatusOr<std::unique_ptr<StatusChannel>> Open(Reactor& reactor) override;

 private:
  Qcow2Device* const device_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_QCOW2_ALLOCATION_DEPTH_H_
