#include "image/raw/flush_group.h"

#include <cerrno>
#include <utility>

namespace berth {

// Awaited; goes on when the waiter leads, or when somebody has flushed for it.
class FlushGroup::Turn {
 public:
  Turn(FlushGroup* group, Waiter* waiter) : group_(group), waiter_(waiter) {}
  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> handle) { return group_->Begin(waiter_, handle); }
  void await_resume() const noexcept {}

 private:
  FlushGroup* const group_;
  Waiter* const waiter_;
};

// Returns whether the waiter has to wait.
bool FlushGroup::Begin(Waiter* waiter, std::coroutine_handle<> handle) {
  MutexLock lock(&mutex_);
  if (failed_) {
    waiter->result = IoResult::Error(EIO);
    return false;
  }
  if (running_) {
    waiter->handle = handle;
    waiting_.push_back(waiter);
    return true;
  }
  running_ = waiter->leads = true;
  return false;
}

// Tells those who shared the leader's flush, and lets those who came meanwhile have the next.
void FlushGroup::Finish(Waiter* leader) {
  const auto wake = [](Waiter* waiter) {
    waiter->reactor->Post([handle = waiter->handle] { handle.resume(); });
  };
  for (Waiter* follower : leader->followers) {
    follower->result = leader->result;
    wake(follower);
  }
  std::vector<Waiter*> next;
  bool failed;
  {
    MutexLock lock(&mutex_);
    if (!leader->result.ok()) failed_ = true;
    failed = failed_;
    next.swap(waiting_);
    running_ = !next.empty() && !failed;
  }
  if (failed) {
    for (Waiter* waiter : next) {
      waiter->result = IoResult::Error(EIO);
      wake(waiter);
    }
    return;
  }
  if (next.empty()) return;
  Waiter* next_leader = next.front();
  next_leader->followers.assign(next.begin() + 1, next.end());
  next_leader->leads = true;
  wake(next_leader);
}

Task<IoResult> FlushGroup::Flush(Reactor& reactor) {
  Waiter waiter = {};
  waiter.reactor = &reactor;
  Turn turn(this, &waiter);
  co_await turn;
  if (!waiter.leads) co_return waiter.result;
  do {
    waiter.result = co_await file_.Sync(reactor);
  } while (waiter.result.error == EINTR || waiter.result.error == EAGAIN);
  Finish(&waiter);
  co_return waiter.result;
}

}  // namespace berth
