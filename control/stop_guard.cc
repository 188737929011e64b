#include "control/stop_guard.h"

#include <unistd.h>

#include "absl/time/clock.h"
#include "control/log.h"

namespace berth::control {

StopGuard::StopGuard(absl::Time deadline) : thread_([this, deadline] { Run(deadline); }) {}

StopGuard::~StopGuard() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
  }
  changed_.SignalAll();
  thread_.join();
}

void StopGuard::Run(absl::Time deadline) {
  MutexLock lock(&mutex_);
  while (!stopped_) {
    changed_.WaitUntil(&mutex_, deadline);
    if (stopped_ || absl::Now() < deadline) continue;
    Log(LogLevel::kError, "not stopped in time: a call or an image is stuck; look at the disks below");
    _exit(1);
  }
}

}  // namespace berth::control
