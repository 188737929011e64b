#include "control/connection_check.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace berth::control {
namespace {

// After a start devices may wait for what is about to be there, such as the end of a process before.
constexpr absl::Duration kFirstPause = absl::Milliseconds(200);

}  // namespace

ConnectionCheck::ConnectionCheck(absl::Duration interval, Callbacks callbacks)
    : interval_(interval), callbacks_(std::move(callbacks)) {}

void ConnectionCheck::Start() {
  if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
}

void ConnectionCheck::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.SignalAll();
  if (thread_.joinable()) thread_.join();
}

void ConnectionCheck::Lost(const std::string& name) {
  {
    MutexLock lock(&mutex_);
    names_.insert(name);
  }
  changed_.SignalAll();
}

void ConnectionCheck::LostByKernel(uint32_t index) {
  {
    MutexLock lock(&mutex_);
    indexes_.insert(index);
  }
  changed_.SignalAll();
}

void ConnectionCheck::Run() {
  absl::Duration pause =
      interval_ > absl::ZeroDuration() ? std::min(interval_, kFirstPause) : absl::InfiniteDuration();
  absl::Time next_all = absl::Now() + pause;
  mutex_.Lock();
  while (!stopping_) {
    if (names_.empty() && indexes_.empty() && absl::Now() < next_all) {
      changed_.WaitUntil(&mutex_, next_all);
      continue;
    }
    const std::set<std::string> names = std::exchange(names_, {});
    const std::set<uint32_t> indexes = std::exchange(indexes_, {});
    mutex_.Unlock();
    std::set<std::string> by_kernel;
    for (const uint32_t index : indexes) {
      if (std::string name = callbacks_.find(index); !name.empty()) by_kernel.insert(std::move(name));
    }
    for (const std::string& name : by_kernel) callbacks_.check(name, true);
    for (const std::string& name : names) {
      if (!by_kernel.contains(name)) callbacks_.check(name, false);
    }
    if (absl::Now() >= next_all) {
      callbacks_.check_all();
      pause = std::min(2 * pause, interval_);
      next_all = absl::Now() + pause;
    }
    mutex_.Lock();
  }
  mutex_.Unlock();
}

}  // namespace berth::control
