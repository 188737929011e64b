#include "image/io/blocking_pool.h"

#include <atomic>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "image/io/mutex.h"
#include "image/io/reactor_pool.h"

namespace berth {
namespace {

TEST(BlockingPoolTest, OneThreadKeepsTheOrder) {
  std::vector<int> order;
  {
    BlockingPool pool(1);
    for (int i = 0; i < 1000; ++i) pool.Submit([&order, i] { order.push_back(i); });
  }
  ASSERT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[i], i);
}

TEST(BlockingPoolTest, TheDestructorFinishesWhatWasSubmitted) {
  std::atomic<int> done = 0;
  {
    BlockingPool pool(4);
    for (int i = 0; i < 1000; ++i) {
      pool.Submit([&pool, &done, i] {
        ++done;
        // Also what was submitted by the last of them.
        if (i % 100 == 0) pool.Submit([&done] { ++done; });
      });
    }
  }
  EXPECT_EQ(done, 1010);
}

TEST(BlockingPoolTest, APoolOfNoThreadsHasOne) {
  bool ran = false;
  {
    BlockingPool(0).Submit([&ran] { ran = true; });
  }
  EXPECT_TRUE(ran);
}

// Each of as many functions as there are threads waits until all of them run.
TEST(BlockingPoolTest, ThreadsRunAtOnce) {
  constexpr int kThreads = 4;
  Mutex mutex;
  CondVar changed;
  int running = 0;
  std::set<std::thread::id> ids;
  {
    BlockingPool pool(kThreads);
    for (int i = 0; i < kThreads; ++i) {
      pool.Submit([&] {
        MutexLock lock(&mutex);
        ++running;
        ids.insert(std::this_thread::get_id());
        changed.SignalAll();
        while (running < kThreads) changed.Wait(&mutex);
      });
    }
  }
  EXPECT_EQ(ids.size(), size_t{kThreads});
}

TEST(BlockingPoolTest, ManyCoroutinesWaitForIt) {
  auto reactors = ReactorPool::Create(2);
  ASSERT_TRUE(reactors.ok()) << reactors.status();
  BlockingPool pool(3);
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      Reactor& reactor = (*reactors)->at(r);
      int64_t sum = 0;
      auto run = [&]() -> Task<void> {
        Gate gate(reactor);
        for (int i = 0; i < 500; ++i) {
          Spawn([](BlockingPool& blocking, Reactor& home, int value, int64_t* total,
                   Gate::Holder) -> Task<void> {
            // A result that can be moved alone, and a function with something to destroy.
            auto function = [number = std::make_unique<int>(value)]() mutable { return std::move(number); };
            const std::unique_ptr<int> result = co_await blocking.Run(home, std::move(function));
            EXPECT_TRUE(home.IsCurrent());
            *total += *result;
          }(pool, reactor, i, &sum, gate.Enter()));
        }
        co_await gate.Close();
      };
      RunOn(reactor, run);
      EXPECT_EQ(sum, 500 * 499 / 2);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace berth
