// RateLimitDevice: the next device, with limits on operations and bytes a second.
//
// One limit is shared by all channels on all reactors. Every operation but Extents counts as one; the bytes
// are those of Read, Write and Prefetch, and those of a Zero where the next device would write them out (with
// ZeroFlags::kFastOnly it never does). Each channel's operations pass in the order in which they came, and
// channels take turns.
//
// An operation passes while the bucket is not empty, and leaves it in debt where it is larger than what is
// left; the next one waits until the debt is paid, on a timer of its reactor. No operation at the head of its
// channel waits for longer than TokenBucket::kLongestDebtNs (rates below one request in that time are
// therefore not kept), so a session that stops drains in bounded time; SetLimits({}) lets everything pass
// within a tenth of a second.
#ifndef BERTH_IMAGE_FILTER_RATE_LIMIT_H_
#define BERTH_IMAGE_FILTER_RATE_LIMIT_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "image/filter/forwarding.h"
#include "image/filter/rate_limiter.h"

namespace berth {

class RateLimitDevice final : public ForwardingDevice {
 public:
  RateLimitDevice(std::shared_ptr<BlockDevice> next, const RateLimits& limits);

  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;

  // Any thread. From now on; what waits is counted anew under the new limits.
  void SetLimits(const RateLimits& limits) { limiter_.SetLimits(limits); }
  RateLimits limits() const { return limiter_.limits(); }

 private:
  RateLimiter limiter_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_FILTER_RATE_LIMIT_H_
