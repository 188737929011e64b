// Gate counts what is under way, and lets its owner wait until the last of it has left.
//
// Thread: confined to one reactor. Lifetime: outlives its holders; Close() is awaited before it is destroyed.
#ifndef BERTH_IMAGE_IO_GATE_H_
#define BERTH_IMAGE_IO_GATE_H_

#include <cassert>
#include <coroutine>
#include <cstddef>
#include <utility>

#include "image/io/reactor.h"

namespace berth {

class Gate {
 public:
  // One that is inside. Moved into the coroutine whose end it marks.
  class Holder {
   public:
    Holder() = default;
    explicit Holder(Gate* gate) : gate_(gate) { ++gate_->inside_; }
    Holder(Holder&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Holder& operator=(Holder&&) = delete;
    ~Holder() {
      if (gate_ != nullptr) gate_->Leave();
    }

   private:
    Gate* gate_ = nullptr;
  };

  explicit Gate(Reactor& reactor) : reactor_(reactor) {}
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate() { assert(inside_ == 0); }

  // Enters. On a closed gate only one who is inside already may bring in another.
  Holder Enter() {
    assert(!closed_ || inside_ > 0);
    return Holder(this);
  }

  bool closed() const { return closed_; }
  size_t inside() const { return inside_; }

  // `co_await gate.Close()` closes the gate and returns once nobody is inside. Awaited once.
  auto Close() {
    closed_ = true;
    struct Awaiter {
      Gate* gate;
      bool await_ready() const noexcept { return gate->inside_ == 0; }
      void await_suspend(std::coroutine_handle<> waiter) const noexcept { gate->waiter_ = waiter; }
      void await_resume() const noexcept {}
    };
    return Awaiter{this};
  }

 private:
  // The waiter goes on in a later turn of the reactor: whoever leaves is often about to free its own frame,
  // and the waiter frees what that frame still points to.
  void Leave() {
    --inside_;
    if (inside_ == 0 && waiter_) reactor_.Schedule(std::exchange(waiter_, nullptr));
  }

  Reactor& reactor_;
  size_t inside_ = 0;
  bool closed_ = false;
  std::coroutine_handle<> waiter_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_IO_GATE_H_
