// BlockingPool: threads for what may block and has no place in a ring: opening files, name resolution, slow
// ioctls.
//
// Thread-safe. Lifetime: outlives the tasks it runs; the destructor finishes what was submitted.
#ifndef BERTH_IMAGE_IO_BLOCKING_POOL_H_
#define BERTH_IMAGE_IO_BLOCKING_POOL_H_

#include <coroutine>
#include <deque>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "image/io/mutex.h"
#include "image/io/reactor.h"

namespace berth {

class BlockingPool {
 public:
  // At least one thread.
  explicit BlockingPool(int threads);
  BlockingPool(const BlockingPool&) = delete;
  BlockingPool& operator=(const BlockingPool&) = delete;
  ~BlockingPool();

  // Runs `function` on one of the pool's threads, in the order of submission.
  void Submit(absl::AnyInvocable<void()> function);

  // `auto value = co_await pool.Run(reactor, function);`, on the reactor's thread: calls `function`, which
  // returns a value, on the pool and goes on with the value on the reactor.
  template <typename Function>
  auto Run(Reactor& reactor, Function function) {
    using Result = std::invoke_result_t<Function>;
    struct Awaiter {
      BlockingPool* pool;
      Reactor* reactor;
      Function function;
      std::optional<Result> result;

      Awaiter(BlockingPool* p, Reactor* r, Function f) : pool(p), reactor(r), function(std::move(f)) {}
      Awaiter(const Awaiter&) = delete;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> waiter) {
        pool->Submit([this, waiter] {
          result.emplace(function());
          reactor->Post([waiter] { waiter.resume(); });
        });
      }
      Result await_resume() { return *std::move(result); }
    };
    return Awaiter(this, &reactor, std::move(function));
  }

 private:
  void Work();

  Mutex mutex_;
  CondVar changed_;
  std::deque<absl::AnyInvocable<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_IO_BLOCKING_POOL_H_
