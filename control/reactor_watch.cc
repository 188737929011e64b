#include "control/reactor_watch.h"

#include <utility>

#include "absl/time/clock.h"
#include "image/io/monotonic_clock.h"

namespace berth::control {
namespace {

// How often a reactor is asked within the limit.
constexpr int kLooks = 4;

}  // namespace

ReactorWatch::ReactorWatch(ReactorPool& reactors, absl::Duration limit,
                           absl::AnyInvocable<void(size_t reactor, absl::Duration silent)> told)
    : reactors_(reactors), limit_(limit), told_(std::move(told)) {
  for (size_t i = 0; i < reactors_.size(); ++i) signs_.push_back(std::make_shared<Sign>());
  thread_ = std::thread([this] { Run(); });
}

void ReactorWatch::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.SignalAll();
  if (thread_.joinable()) thread_.join();
}

void ReactorWatch::Run() {
  mutex_.Lock();
  while (!stopping_) {
    mutex_.Unlock();
    const int64_t now = MonotonicNanoseconds();
    for (size_t i = 0; i < signs_.size(); ++i) Look(i, now);
    mutex_.Lock();
    if (!stopping_) changed_.WaitUntil(&mutex_, absl::Now() + limit_ / kLooks);
  }
  mutex_.Unlock();
}

void ReactorWatch::Look(size_t reactor, int64_t now_ns) {
  Sign& sign = *signs_[reactor];
  if (!sign.answered.load(std::memory_order_acquire)) {
    const absl::Duration silent = absl::Nanoseconds(now_ns - sign.asked_ns);
    if (sign.stuck || silent < limit_) return;
    sign.stuck = true;
    stuck_.fetch_add(1, std::memory_order_relaxed);
    told_(reactor, silent);
    return;
  }
  if (std::exchange(sign.stuck, false)) {
    stuck_.fetch_sub(1, std::memory_order_relaxed);
    told_(reactor, absl::ZeroDuration());
  }
  sign.answered.store(false, std::memory_order_relaxed);
  sign.asked_ns = now_ns;
  reactors_.at(reactor).Post(
      [asked = signs_[reactor]] { asked->answered.store(true, std::memory_order_release); });
}

}  // namespace berth::control
