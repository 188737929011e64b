#include "image/filter/rate_limiter.h"

#include <algorithm>

#include "absl/time/time.h"
#include "image/io/monotonic_clock.h"

namespace berth {
namespace {

// Whoever waits looks at least this often whether the limits have changed.
constexpr int64_t kLongestTimerNs = 100'000'000;

}  // namespace

void RateLimiter::SetLimits(const RateLimits& limits) {
  const int64_t now = MonotonicNanoseconds();
  MutexLock lock(&mutex_);
  limits_ = limits;
  operations_.Configure(now, limits.operations_per_second, limits.burst_operations);
  bytes_.Configure(now, limits.bytes_per_second, limits.burst_bytes);
  limited_.store(limits.operations_per_second != 0 || limits.bytes_per_second != 0,
                 std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_relaxed);
}

RateLimits RateLimiter::limits() const {
  MutexLock lock(&mutex_);
  return limits_;
}

int64_t RateLimiter::Take(int64_t now_ns, uint64_t bytes) {
  return std::max(operations_.Take(now_ns, 1), bytes_.Take(now_ns, bytes));
}

RateLimitQueue::Turn RateLimitQueue::Take(int64_t now_ns, uint64_t bytes) {
  const uint32_t generation = limiter_->generation();
  const int64_t from = limiter_->Take(now_ns, bytes);
  return Turn{.passed = from <= now_ns, .taken = true, .generation = generation, .from_ns = from};
}

RateLimitQueue::Turn RateLimitQueue::EnterLimited(uint64_t bytes) {
  if (!waiting_.empty()) return Turn{};
  return Take(MonotonicNanoseconds(), bytes);
}

void RateLimitQueue::Append(const Waiting& waiting) {
  waiting_.push_back(waiting);
  if (waiting_.size() == 1) Advance();
}

void RateLimitQueue::Advance() {
  const int64_t now = MonotonicNanoseconds();
  while (!waiting_.empty()) {
    Waiting& head = waiting_.front();
    if (!head.turn.taken || head.turn.generation != limiter_->generation()) {
      head.turn = Take(now, head.bytes);
    }
    if (head.turn.from_ns > now) {
      const int64_t wait = std::min(head.turn.from_ns - now, kLongestTimerNs);
      timer_ = Reactor::Timer(*reactor_, absl::Nanoseconds(wait), [this] { Advance(); });
      return;
    }
    reactor_->Schedule(head.waiter);
    waiting_.pop_front();
  }
}

}  // namespace berth
