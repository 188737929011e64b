// TokenBucket: so much a second on average, with bursts, and debts for what is larger than a burst.
//
// The state is one number: the time at which the bucket was, or will be, empty. What is taken moves it on;
// the bucket is full when that time lies a burst behind. Taking is one compare-and-swap.
//
// Thread-safe. Time comes from the caller, in nanoseconds of a clock that never goes back.
#ifndef BERTH_IMAGE_FILTER_TOKEN_BUCKET_H_
#define BERTH_IMAGE_FILTER_TOKEN_BUCKET_H_

#include <atomic>
#include <cstdint>

namespace berth {

class TokenBucket {
 public:
  // The longest debt a bucket keeps. A request that is worth more than that at the rate, or many at once, are
  // forgiven the rest, so that no wait is longer.
  static constexpr int64_t kLongestDebtNs = 10'000'000'000;

  // From now on `rate` a second, and `burst` at once after a pause. A rate of 0 takes the limit away; a burst
  // of 0 means a tenth of a second's worth. Debts are forgiven, and the bucket begins empty.
  void Configure(int64_t now_ns, uint64_t rate, uint64_t burst);

  // Takes `amount` and returns from when on it may be used: not later than `now_ns` for at once. Each taker
  // gets a time of its own, in the order of taking.
  int64_t Take(int64_t now_ns, uint64_t amount) {
    const double each = ns_each_.load(std::memory_order_relaxed);
    if (each == 0 || amount == 0) return now_ns;
    return TakeLimited(now_ns, static_cast<double>(amount) * each);
  }

 private:
  int64_t TakeLimited(int64_t now_ns, double cost_ns);

  std::atomic<double> ns_each_ = 0;
  std::atomic<int64_t> burst_ns_ = 0;
  std::atomic<int64_t> empty_at_ns_ = 0;
};

}  // namespace berth

#endif  // BERTH_IMAGE_FILTER_TOKEN_BUCKET_H_
