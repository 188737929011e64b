// StatusDevice: a filter that offers metadata contexts, as an image with bitmaps does.
//
// Each has stripes of kStripe bytes whose status is `step` times the stripe's number, so that every byte's
// status is known to the test. Thread-safe.
#ifndef BERTH_TESTS_FAKES_STATUS_DEVICE_H_
#define BERTH_TESTS_FAKES_STATUS_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "image/filter/forwarding.h"

namespace berth {

class StatusDevice final : public ForwardingDevice {
 public:
  static constexpr uint64_t kStripe = 8192;

  explicit StatusDevice(std::shared_ptr<BlockDevice> next) : ForwardingDevice(std::move(next)) {}

  void Offer(const std::string& name, bool wide, uint64_t step);

  std::vector<std::shared_ptr<StatusContext>> contexts() const override { return contexts_; }

  // From now on all of its contexts answer with the errno `error`; 0 ends that.
  void Fail(int error) { *error_ = error; }

 private:
  // Shared with the contexts, which may outlive the device.
  const std::shared_ptr<std::atomic<int>> error_ = std::make_shared<std::atomic<int>>(0);
  std::vector<std::shared_ptr<StatusContext>> contexts_;
};

}  // namespace berth

#endif  // BERTH_TESTS_FAKES_STATUS_DEVICE_H_
