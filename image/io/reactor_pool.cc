#include "image/io/reactor_pool.h"

#include <algorithm>

namespace berth {

absl::StatusOr<std::unique_ptr<ReactorPool>> ReactorPool::Create(int count, const ReactorOptions& options) {
  std::unique_ptr<ReactorPool> pool(new ReactorPool);
  for (int i = 0; i < std::max(1, count); ++i) {
    absl::StatusOr<std::unique_ptr<Reactor>> reactor = Reactor::Create(options);
    if (!reactor.ok()) return reactor.status();
    pool->reactors_.push_back(*std::move(reactor));
  }
  for (const std::unique_ptr<Reactor>& reactor : pool->reactors_) {
    pool->threads_.emplace_back([&reactor = *reactor] { reactor.Run(); });
  }
  return pool;
}

ReactorPool::~ReactorPool() {
  for (const std::unique_ptr<Reactor>& reactor : reactors_) reactor->Stop();
  for (std::thread& thread : threads_) thread.join();
}

}  // namespace berth
