// RateLimiter: the two buckets of a rate limit and the limits they are filled by. RateLimitQueue: the
// operations of one channel that wait for them.
#ifndef BERTH_IMAGE_FILTER_RATE_LIMITER_H_
#define BERTH_IMAGE_FILTER_RATE_LIMITER_H_

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <deque>

#include "absl/base/thread_annotations.h"
#include "image/filter/token_bucket.h"
#include "image/io/mutex.h"
#include "image/io/reactor.h"

namespace berth {

// A rate of zero means no limit; a burst of zero means a tenth of a second's worth.
struct RateLimits {
  uint64_t operations_per_second = 0;
  uint64_t bytes_per_second = 0;
  uint64_t burst_operations = 0;
  uint64_t burst_bytes = 0;

  bool operator==(const RateLimits&) const = default;
};

// Thread-safe.
class RateLimiter {
 public:
  explicit RateLimiter(const RateLimits& limits) { SetLimits(limits); }

  void SetLimits(const RateLimits& limits);
  RateLimits limits() const;

  // False where nothing is limited: the one load that an operation costs then.
  bool limited() const { return limited_.load(std::memory_order_relaxed); }

  // Counts the calls of SetLimits(): a time that Take() gave means nothing under another generation.
  uint32_t generation() const { return generation_.load(std::memory_order_relaxed); }

  // Takes one operation of `bytes`, and returns from when on (CLOCK_MONOTONIC) it may go on.
  int64_t Take(int64_t now_ns, uint64_t bytes);

 private:
  std::atomic<bool> limited_ = false;
  std::atomic<uint32_t> generation_ = 0;
  TokenBucket operations_;
  TokenBucket bytes_;

  mutable Mutex mutex_;
  RateLimits limits_ ABSL_GUARDED_BY(mutex_);
};

// Thread: confined to one reactor. Lifetime: nobody waits in it when it is destroyed.
//
// Only the head of the queue has taken from the buckets, so that channels take turns however long their
// queues are.
class RateLimitQueue {
 public:
  // What an operation got from the buckets.
  struct Turn {
    bool passed = false;      // It may go on at once. Else it waits:
    bool taken = false;       // it has taken from the buckets already,
    uint32_t generation = 0;  // under these limits,
    int64_t from_ns = 0;      // and may go on from this time on.
  };

  RateLimitQueue(RateLimiter* limiter, Reactor* reactor) : limiter_(limiter), reactor_(reactor) {}
  RateLimitQueue(const RateLimitQueue&) = delete;
  RateLimitQueue& operator=(const RateLimitQueue&) = delete;

  // For each operation first; where it has not passed, Wait() follows.
  Turn Enter(uint64_t bytes) {
    if (waiting_.empty() && !limiter_->limited()) return Turn{.passed = true};
    return EnterLimited(bytes);
  }

  // `co_await queue.Wait(turn, bytes)` goes on when the operation may.
  auto Wait(const Turn& turn, uint64_t bytes) {
    struct Awaiter {
      RateLimitQueue* queue;
      Turn turn;
      uint64_t bytes;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> waiter) const { queue->Append({turn, bytes, waiter}); }
      void await_resume() const noexcept {}
    };
    return Awaiter{this, turn, bytes};
  }

 private:
  struct Waiting {
    Turn turn;
    uint64_t bytes;
    std::coroutine_handle<> waiter;
  };

  Turn EnterLimited(uint64_t bytes);
  Turn Take(int64_t now_ns, uint64_t bytes);
  void Append(const Waiting& waiting);
  // Lets those pass whose time has come, and sets the timer for the first of the rest.
  void Advance();

  RateLimiter* const limiter_;
  Reactor* const reactor_;
  std::deque<Waiting> waiting_;
  Reactor::Timer timer_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_FILTER_RATE_LIMITER_H_
