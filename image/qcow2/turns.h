// Turns: a lock that coroutines of several reactors wait for without blocking their threads.
//
// Thread-safe. First come, first served. Lifetime: outlives whoever holds it or waits.
#ifndef BERTH_IMAGE_QCOW2_TURNS_H_
#define BERTH_IMAGE_QCOW2_TURNS_H_

#include <coroutine>
#include <deque>

#include "absl/base/thread_annotations.h"
#include "image/io/mutex.h"
#include "image/io/reactor.h"

namespace berth::qcow2 {

class Turns {
 public:
  Turns() = default;
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  // `Turns::Turn turn(turns, reactor); co_await turn;` holds it until the object's end. Awaited once.
  class Turn {
   public:
    Turn(Turns& turns, Reactor& reactor) : turns_(turns), reactor_(reactor) {}
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { turns_.Next(); }

    bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> waiter) { return turns_.Wait({&reactor_, waiter}); }
    void await_resume() const noexcept {}

   private:
    Turns& turns_;
    Reactor& reactor_;
  };

 private:
  struct Waiter {
    Reactor* reactor;
    std::coroutine_handle<> handle;
  };

  bool Wait(Waiter waiter) {
    MutexLock lock(&mutex_);
    if (!held_) {
      held_ = true;
      return false;
    }
    waiting_.push_back(waiter);
    return true;
  }
  void Next() {
    Waiter next;
    {
      MutexLock lock(&mutex_);
      if (waiting_.empty()) {
        held_ = false;
        return;
      }
      next = waiting_.front();
      waiting_.pop_front();
    }
    next.reactor->Post([handle = next.handle] { handle.resume(); });
  }

  Mutex mutex_;
  bool held_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Waiter> waiting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_TURNS_H_
