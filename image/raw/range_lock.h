// RangeLock: byte ranges of one image that are held while they are written, across reactors.
//
// Needed for O_DIRECT only: a write that covers part of a block reads the block, changes it and writes it
// back, and must not put old bytes over what another write put into the rest of the block meanwhile. Such a
// write holds its blocks exclusively; one that covers whole blocks shares them.
//
// Whoever came first goes first where ranges overlap, so nobody starves. While no range is held exclusively,
// a shared hold costs one uncontended mutex.
//
// Thread-safe. A hold lives in a coroutine's frame on its reactor's thread. Lifetime: outlives its holds.
#ifndef BERTH_IMAGE_RAW_RANGE_LOCK_H_
#define BERTH_IMAGE_RAW_RANGE_LOCK_H_

#include <coroutine>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "image/io/mutex.h"
#include "image/io/reactor.h"

namespace berth {

class RangeLock {
 public:
  enum class Kind : uint8_t { kShared, kExclusive };

  // `RangeLock::Hold hold(&lock, reactor, begin, end, kind); co_await hold;` holds [begin, end) until the end
  // of the object's life. Awaited exactly once.
  class Hold {
   public:
    Hold(RangeLock* lock, Reactor& reactor, uint64_t begin, uint64_t end, Kind kind)
        : lock_(lock), reactor_(reactor), begin_(begin), end_(end), kind_(kind) {}
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    ~Hold();

    bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> waiter);
    void await_resume() const noexcept {}

   private:
    friend class RangeLock;

    bool ConflictsWith(const Hold& other) const {
      return begin_ < other.end_ && other.begin_ < end_ &&
             (kind_ == Kind::kExclusive || other.kind_ == Kind::kExclusive);
    }

    RangeLock* const lock_;
    Reactor& reactor_;
    const uint64_t begin_;
    const uint64_t end_;
    const Kind kind_;
    std::coroutine_handle<> waiter_;  // Null where it is not waiting.
    Hold* previous_ = nullptr;
    Hold* next_ = nullptr;
  };

  RangeLock() = default;
  RangeLock(const RangeLock&) = delete;
  RangeLock& operator=(const RangeLock&) = delete;

 private:
  bool MustWait(const Hold& hold) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  // In the order of arrival, those that hold and those that wait.
  Hold* first_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Hold* last_ ABSL_GUARDED_BY(mutex_) = nullptr;
  size_t exclusive_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_RANGE_LOCK_H_
