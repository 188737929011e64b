#include "image/raw/range_lock.h"

#include <cassert>
#include <utility>

namespace berth {

bool RangeLock::MustWait(const Hold& hold) const {
  for (const Hold* earlier = hold.previous_; earlier != nullptr; earlier = earlier->previous_) {
    if (hold.ConflictsWith(*earlier)) return true;
  }
  return false;
}

bool RangeLock::Hold::await_suspend(std::coroutine_handle<> waiter) {
  assert(reactor_.IsCurrent());
  MutexLock lock(&lock_->mutex_);
  previous_ = lock_->last_;
  (previous_ != nullptr ? previous_->next_ : lock_->first_) = this;
  lock_->last_ = this;
  if (kind_ == Kind::kExclusive) ++lock_->exclusive_;
  if (lock_->exclusive_ == 0 || !lock_->MustWait(*this)) return false;
  waiter_ = waiter;
  return true;
}

RangeLock::Hold::~Hold() {
  MutexLock lock(&lock_->mutex_);
  (previous_ != nullptr ? previous_->next_ : lock_->first_) = next_;
  (next_ != nullptr ? next_->previous_ : lock_->last_) = previous_;
  const bool others_may_wait = lock_->exclusive_ > 0;
  if (kind_ == Kind::kExclusive) --lock_->exclusive_;
  if (!others_may_wait) return;
  for (Hold* later = next_; later != nullptr; later = later->next_) {
    if (!later->waiter_ || !later->ConflictsWith(*this) || lock_->MustWait(*later)) continue;
    // Post, as the waiter may live on another reactor. It cannot leave the list before it runs there.
    later->reactor_.Post([waiter = std::exchange(later->waiter_, nullptr)] { waiter.resume(); });
  }
}

}  // namespace berth
