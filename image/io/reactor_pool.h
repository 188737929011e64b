// ReactorPool: several reactors, each running on a thread of its own.
//
// Thread-safe. Lifetime: everything that lives on its reactors has ended before it is destroyed.
#ifndef BERTH_IMAGE_IO_REACTOR_POOL_H_
#define BERTH_IMAGE_IO_REACTOR_POOL_H_

#include <atomic>
#include <cassert>
#include <cstddef>
#include <memory>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "image/io/mutex.h"
#include "image/io/reactor.h"
#include "image/io/task.h"

namespace berth {

class ReactorPool {
 public:
  // Starts `count` reactors, at least one.
  static absl::StatusOr<std::unique_ptr<ReactorPool>> Create(int count, const ReactorOptions& options = {});

  ReactorPool(const ReactorPool&) = delete;
  ReactorPool& operator=(const ReactorPool&) = delete;
  ~ReactorPool();

  size_t size() const { return reactors_.size(); }
  Reactor& at(size_t index) { return *reactors_[index]; }

  // The reactors in turn, so that connections spread over them.
  Reactor& Next() { return *reactors_[next_.fetch_add(1, std::memory_order_relaxed) % reactors_.size()]; }

 private:
  ReactorPool() = default;

  std::vector<std::unique_ptr<Reactor>> reactors_;
  std::vector<std::thread> threads_;
  std::atomic<size_t> next_ = 0;
};

// Runs `make_task()` on `reactor`, waits for the task's end and returns its value. For threads that are not a
// reactor's. The task must be one that ends: a wait in it carries its own deadline.
template <typename MakeTask>
auto RunOn(Reactor& reactor, MakeTask make_task) {
  using Result = decltype(std::declval<std::invoke_result_t<MakeTask>>().await_resume());
  struct State {
    Mutex mutex;
    CondVar finished;
    bool done = false;
    std::conditional_t<std::is_void_v<Result>, bool, std::optional<Result>> result = {};
  };
  assert(!reactor.IsCurrent());
  // Shared, as the reactor's thread may still be inside SignalAll when this function returns.
  auto state = std::make_shared<State>();
  reactor.Post([state, &make_task] {
    Spawn([](std::shared_ptr<State> shared, MakeTask& make) -> Task<void> {
      if constexpr (std::is_void_v<Result>) {
        co_await make();
      } else {
        shared->result.emplace(co_await make());
      }
      {
        MutexLock lock(&shared->mutex);
        shared->done = true;
      }
      shared->finished.SignalAll();
    }(state, make_task));
  });
  MutexLock lock(&state->mutex);
  while (!state->done) state->finished.Wait(&state->mutex);
  if constexpr (!std::is_void_v<Result>) return Result(*std::move(state->result));
}

}  // namespace berth

#endif  // BERTH_IMAGE_IO_REACTOR_POOL_H_
