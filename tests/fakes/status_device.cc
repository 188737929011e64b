#include "tests/fakes/status_device.h"

#include <algorithm>
#include <utility>

#include "image/block/extent.h"

namespace berth {
namespace {

class StripeChannel final : public StatusChannel {
 public:
  StripeChannel(Reactor& reactor, uint64_t step, std::shared_ptr<std::atomic<int>> error)
      : reactor_(reactor), step_(step), error_(std::move(error)) {}

  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<StatusExtent>* out) override {
    co_await reactor_.Yield();
    if (const int error = *error_; error != 0) co_return IoResult::Error(error);
    const uint64_t end = offset + length;
    for (size_t i = 0; i < kMaxExtents && offset < end; ++i) {
      const uint64_t stripe = offset / StatusDevice::kStripe;
      // Without steps there is one status, and so one extent.
      const uint64_t stop = step_ == 0 ? end : std::min(end, (stripe + 1) * StatusDevice::kStripe);
      out->push_back({stop - offset, stripe * step_});
      offset = stop;
    }
    co_return IoResult::Ok();
  }

 private:
  Reactor& reactor_;
  const uint64_t step_;
  const std::shared_ptr<std::atomic<int>> error_;
};

class StripeContext final : public StatusContext {
 public:
  StripeContext(std::string name, bool wide, uint64_t step, std::shared_ptr<std::atomic<int>> error)
      : StatusContext(std::move(name), wide), step_(step), error_(std::move(error)) {}

  absl::StatusOr<std::unique_ptr<StatusChannel>> Open(Reactor& reactor) override {
    return std::make_unique<StripeChannel>(reactor, step_, error_);
  }

 private:
  const uint64_t step_;
  const std::shared_ptr<std::atomic<int>> error_;
};

}  // namespace

void StatusDevice::Offer(const std::string& name, bool wide, uint64_t step) {
  contexts_.push_back(std::make_shared<StripeContext>(name, wide, step, error_));
}

}  // namespace berth
