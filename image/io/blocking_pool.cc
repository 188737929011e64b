#include "image/io/blocking_pool.h"

#include <algorithm>

namespace berth {

BlockingPool::BlockingPool(int threads) {
  for (int i = 0; i < std::max(1, threads); ++i) threads_.emplace_back([this] { Work(); });
}

BlockingPool::~BlockingPool() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.SignalAll();
  for (std::thread& thread : threads_) thread.join();
}

void BlockingPool::Submit(absl::AnyInvocable<void()> function) {
  {
    MutexLock lock(&mutex_);
    queue_.push_back(std::move(function));
  }
  changed_.Signal();
}

void BlockingPool::Work() {
  while (true) {
    absl::AnyInvocable<void()> function;
    {
      MutexLock lock(&mutex_);
      while (queue_.empty() && !stopping_) changed_.Wait(&mutex_);
      if (queue_.empty()) return;
      function = std::move(queue_.front());
      queue_.pop_front();
    }
    function();
  }
}

}  // namespace berth
