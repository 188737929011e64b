// RunWithin: something that blocks, on a pool's thread, awaited with a deadline.
#ifndef BERTH_NBD_CLIENT_RUN_WITHIN_H_
#define BERTH_NBD_CLIENT_RUN_WITHIN_H_

#include <coroutine>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "image/io/blocking_pool.h"
#include "image/io/mutex.h"
#include "image/io/reactor.h"

namespace berth::nbd {

// `std::optional<R> result = co_await RunWithin(pool, reactor, timeout, function);`, on the reactor's thread:
// nothing where `function` took longer. It then goes on by itself, so that it must own what it uses; the
// reactor may be gone when it returns.
template <typename Function>
class RunWithin {
 public:
  using Result = std::invoke_result_t<Function>;

  RunWithin(BlockingPool& pool, Reactor& reactor, absl::Duration timeout, Function function)
      : pool_(pool), reactor_(reactor), timeout_(timeout), state_(std::make_shared<State>()) {
    state_->function.emplace(std::move(function));
  }
  RunWithin(const RunWithin&) = delete;

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    {
      MutexLock lock(&state_->mutex);
      state_->reactor = &reactor_;
    }
    state_->waiter = waiter;
    // The timer dies with this object at the latest, and the state outlives it.
    timer_ = Reactor::Timer(reactor_, timeout_, [state = state_.get()] { state->Resume(); });
    pool_.Submit([state = state_] {
      Result result = (*state->function)();
      state->function.reset();
      MutexLock lock(&state->mutex);
      if (state->reactor == nullptr) return;
      state->result.emplace(std::move(result));
      state->reactor->Post([state] { state->Resume(); });
    });
  }
  std::optional<Result> await_resume() {
    timer_.Cancel();
    MutexLock lock(&state_->mutex);
    state_->reactor = nullptr;
    return std::move(state_->result);
  }

 private:
  struct State {
    // On the reactor's thread; the second call does nothing.
    void Resume() {
      if (std::coroutine_handle<> handle = std::exchange(waiter, nullptr)) handle.resume();
    }

    std::optional<Function> function;  // Until it was run, the pool's.
    std::coroutine_handle<> waiter;    // The reactor's.
    Mutex mutex;
    Reactor* reactor ABSL_GUARDED_BY(mutex) = nullptr;  // Null once nobody waits.
    std::optional<Result> result ABSL_GUARDED_BY(mutex);
  };

  BlockingPool& pool_;
  Reactor& reactor_;
  const absl::Duration timeout_;
  const std::shared_ptr<State> state_;
  Reactor::Timer timer_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_RUN_WITHIN_H_
