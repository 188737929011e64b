// ReactorWatch: notices a reactor that does not turn, and so serves none of its connections.
//
// A thread asks every reactor for a sign of life, a few times in `limit`. Thread-safe. Lifetime: the reactors
// outlive it.
#ifndef BERTH_CONTROL_REACTOR_WATCH_H_
#define BERTH_CONTROL_REACTOR_WATCH_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "image/io/mutex.h"
#include "image/io/reactor_pool.h"

namespace berth::control {

class ReactorWatch {
 public:
  // `told` hears once that a reactor has not turned for `silent`, at least `limit`; and once, with zero, that
  // it turns again. On this object's own thread.
  ReactorWatch(ReactorPool& reactors, absl::Duration limit,
               absl::AnyInvocable<void(size_t reactor, absl::Duration silent)> told);
  ReactorWatch(const ReactorWatch&) = delete;
  ReactorWatch& operator=(const ReactorWatch&) = delete;
  ~ReactorWatch() { Stop(); }

  // How many reactors do not turn.
  size_t stuck() const { return stuck_.load(std::memory_order_relaxed); }

  void Stop();

 private:
  // A question, and whether it was answered; outlives this object in a reactor that does not turn.
  struct Sign {
    std::atomic<bool> answered = true;
    int64_t asked_ns = 0;  // The thread's alone.
    bool stuck = false;    // The same.
  };

  void Run();
  void Look(size_t reactor, int64_t now_ns);

  ReactorPool& reactors_;
  const absl::Duration limit_;
  absl::AnyInvocable<void(size_t reactor, absl::Duration silent)> told_;
  std::vector<std::shared_ptr<Sign>> signs_;
  std::atomic<size_t> stuck_ = 0;
  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_REACTOR_WATCH_H_
