// StopGuard: a clean stop that does not end, ends anyway.
//
// A call or an image may be stuck in a disk that does not answer, and a thread that waits for it cannot be
// ended. Everything acknowledged is on disk, so leaving is safe, and hanging is not.
#ifndef BERTH_CONTROL_STOP_GUARD_H_
#define BERTH_CONTROL_STOP_GUARD_H_

#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "image/io/mutex.h"

namespace berth::control {

// Leaves the process with exit code 1 at `deadline`, unless it was destroyed before.
class StopGuard {
 public:
  explicit StopGuard(absl::Time deadline);
  StopGuard(const StopGuard&) = delete;
  StopGuard& operator=(const StopGuard&) = delete;
  ~StopGuard();

 private:
  void Run(absl::Time deadline);

  Mutex mutex_;
  CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_STOP_GUARD_H_
