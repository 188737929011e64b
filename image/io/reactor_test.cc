#include "image/io/reactor.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/blocking_pool.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"

namespace berth {
namespace {

class ReactorTest : public testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }
  Reactor& reactor() { return pool_->at(0); }

  std::unique_ptr<ReactorPool> pool_;
};

TEST_F(ReactorTest, PostedFunctionsRunInOrderOnTheReactor) {
  std::vector<int> order;
  for (int i = 0; i < 1000; ++i) {
    reactor().Post([&order, i, this] {
      EXPECT_TRUE(reactor().IsCurrent());
      order.push_back(i);
    });
  }
  RunOn(reactor(), []() -> Task<void> { co_return; });
  ASSERT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[i], i);
}

TEST_F(ReactorTest, OperationsReturnWhatTheSystemCallWould) {
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  UniqueFd near(sockets[0]), far(sockets[1]);
  auto exchange = [&]() -> Task<int> {
    std::array<char, 8> buffer;
    EXPECT_EQ(write(far.get(), "abc", 3), 3);
    EXPECT_EQ(co_await reactor().Receive(near.get(), buffer.data(), buffer.size()), 3);
    far.Reset();
    EXPECT_EQ(co_await reactor().Receive(near.get(), buffer.data(), buffer.size()), 0);
    co_return co_await reactor().Read(-1, buffer.data(), 1, 0);
  };
  EXPECT_EQ(RunOn(reactor(), exchange), -EBADF);
}

TEST_F(ReactorTest, MoreOperationsThanTheQueueHolds) {
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  UniqueFd near(sockets[0]), far(sockets[1]);
  constexpr int kOperations = 2000;
  int finished = 0;
  auto run = [&]() -> Task<void> {
    Gate gate(reactor());
    for (int i = 0; i < kOperations; ++i) {
      Spawn([](Reactor& ring, int fd, int* count, Gate::Holder) -> Task<void> {
        char byte;
        EXPECT_EQ(co_await ring.Receive(fd, &byte, 1), 1);
        ++*count;
      }(reactor(), near.get(), &finished, gate.Enter()));
    }
    const std::string bytes(kOperations, 'x');
    EXPECT_EQ(write(far.get(), bytes.data(), bytes.size()), kOperations);
    co_await gate.Close();
  };
  RunOn(reactor(), run);
  EXPECT_EQ(finished, kOperations);
}

TEST_F(ReactorTest, TimersFireInOrderAndCanBeTakenBack) {
  std::vector<int> fired;
  auto run = [&]() -> Task<void> {
    Reactor::Timer late(reactor(), absl::Milliseconds(20), [&] { fired.push_back(2); });
    Reactor::Timer early(reactor(), absl::Milliseconds(1), [&] { fired.push_back(1); });
    Reactor::Timer never(reactor(), absl::Milliseconds(5), [&] { fired.push_back(3); });
    never.Cancel();
    co_await reactor().Sleep(absl::Milliseconds(40));
  };
  RunOn(reactor(), run);
  EXPECT_EQ(fired, (std::vector<int>{1, 2}));
}

TEST_F(ReactorTest, GateWaitsForTheLast) {
  std::vector<std::string> events;
  auto run = [&]() -> Task<void> {
    Gate gate(reactor());
    for (int i = 0; i < 3; ++i) {
      Spawn([](Reactor& ring, std::vector<std::string>* log, Gate::Holder) -> Task<void> {
        co_await ring.Sleep(absl::Milliseconds(1));
        log->push_back("left");
      }(reactor(), &events, gate.Enter()));
    }
    EXPECT_EQ(gate.inside(), 3u);
    co_await gate.Close();
    events.push_back("closed");
  };
  RunOn(reactor(), run);
  EXPECT_EQ(events, (std::vector<std::string>{"left", "left", "left", "closed"}));
}

TEST_F(ReactorTest, YieldLetsOthersOfTheSameTurnGoFirst) {
  std::string order;
  auto run = [&]() -> Task<void> {
    Gate gate(reactor());
    for (char name : {'a', 'b'}) {
      Spawn([](Reactor& ring, std::string* log, char id, Gate::Holder) -> Task<void> {
        log->push_back(id);
        co_await ring.Yield();
        log->push_back(id);
      }(reactor(), &order, name, gate.Enter()));
    }
    co_await gate.Close();
  };
  RunOn(reactor(), run);
  EXPECT_EQ(order, "abab");
}

TEST_F(ReactorTest, BlockingPoolGoesOnOnTheReactor) {
  BlockingPool pool(2);
  auto run = [&]() -> Task<int> {
    auto blocking = [this] { return reactor().IsCurrent() ? 0 : 5; };
    const int value = co_await pool.Run(reactor(), blocking);
    EXPECT_TRUE(reactor().IsCurrent());
    co_return value;
  };
  EXPECT_EQ(RunOn(reactor(), run), 5);
}

TEST_F(ReactorTest, PostFromManyThreads) {
  std::atomic<int> count = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10'000; ++i) reactor().Post([&count] { ++count; });
    });
  }
  for (std::thread& thread : threads) thread.join();
  RunOn(reactor(), []() -> Task<void> { co_return; });
  EXPECT_EQ(count, 40'000);
}

// Far more completions than either queue holds, all at the same moment.
TEST(ReactorQueueTest, CompletionsThatFindTheirQueueFullAreNotLost) {
  auto pool = ReactorPool::Create(1, ReactorOptions{.queue_depth = 2});
  ASSERT_TRUE(pool.ok()) << pool.status();
  Reactor& reactor = (*pool)->at(0);
  constexpr int kOperations = 1000;
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  UniqueFd near(sockets[0]), far(sockets[1]);
  int finished = 0;
  auto run = [&]() -> Task<void> {
    Gate gate(reactor);
    for (int i = 0; i < kOperations; ++i) {
      Spawn([](Reactor& ring, int fd, int* count, Gate::Holder) -> Task<void> {
        char byte;
        EXPECT_EQ(co_await ring.Receive(fd, &byte, 1), 0);
        ++*count;
      }(reactor, near.get(), &finished, gate.Enter()));
    }
    // The end of the stream ends all of them.
    far.Reset();
    co_await gate.Close();
  };
  RunOn(reactor, run);
  EXPECT_EQ(finished, kOperations);
}

// Operations that complete at once do not keep those from their turn who were posted or scheduled.
TEST_F(ReactorTest, ABusyRingLeavesOthersTheirTurn) {
  std::atomic<bool> stop = false;
  Reactor& ring = reactor();
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  UniqueFd near(sockets[0]), far(sockets[1]);
  std::thread busy([&] {
    auto run = [&]() -> Task<void> {
      Gate gate(ring);
      for (int i = 0; i < 300; ++i) {
        Spawn([](Reactor& r, int fd, std::atomic<bool>* end, Gate::Holder) -> Task<void> {
          while (!end->load()) EXPECT_EQ(co_await r.Poll(fd, POLLOUT), POLLOUT);
        }(ring, near.get(), &stop, gate.Enter()));
      }
      co_await gate.Close();
    };
    RunOn(ring, run);
  });
  RunOn(ring, [&]() -> Task<void> {
    for (int i = 0; i < 10; ++i) co_await ring.Yield();
  });
  stop = true;
  busy.join();
}

TEST_F(ReactorTest, CancelEndsAnOperation) {
  int sockets[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  UniqueFd near(sockets[0]), far(sockets[1]);
  auto run = [&]() -> Task<int> {
    char byte;
    Reactor::Operation receive = reactor().Receive(near.get(), &byte, 1);
    Reactor::Timer timer(reactor(), absl::ZeroDuration(), [&] { reactor().Cancel(receive); });
    co_return co_await receive;
  };
  EXPECT_EQ(RunOn(reactor(), run), -ECANCELED);
}

TEST_F(ReactorTest, AnInfiniteTimerNeverFires) {
  bool fired = false;
  auto run = [&]() -> Task<void> {
    Reactor::Timer never(reactor(), absl::InfiniteDuration(), [&] { fired = true; });
    Reactor::Timer past(reactor(), -absl::InfiniteDuration(), [] {});
    co_await reactor().Sleep(absl::Milliseconds(1));
  };
  RunOn(reactor(), run);
  EXPECT_FALSE(fired);
}

TEST_F(ReactorTest, ATimerMayBeReplacedAndDestroyedByItsOwnFunction) {
  int fired = 0;
  auto run = [&]() -> Task<void> {
    auto timer = std::make_unique<Reactor::Timer>();
    std::function<void()> again = [&] {
      if (++fired == 3) {
        timer.reset();
      } else {
        *timer = Reactor::Timer(reactor(), absl::ZeroDuration(), [&] { again(); });
      }
    };
    *timer = Reactor::Timer(reactor(), absl::ZeroDuration(), [&] { again(); });
    while (fired < 3) co_await reactor().Yield();
    Reactor::Timer moved(reactor(), absl::ZeroDuration(), [&] { ++fired; });
    Reactor::Timer to = std::move(moved);
    moved.Cancel();
    while (fired < 4) co_await reactor().Yield();
  };
  RunOn(reactor(), run);
  EXPECT_EQ(fired, 4);
}

// A coroutine that is destroyed while it sleeps takes its timer along.
TEST_F(ReactorTest, ASleeperMayBeDestroyed) {
  auto run = [this]() -> Task<void> {
    {
      auto sleep = [](Reactor& ring) -> Task<void> { co_await ring.Sleep(absl::Milliseconds(1)); };
      Task<void> sleeper = sleep(reactor());
      sleeper.await_suspend(std::noop_coroutine());
    }
    co_await reactor().Sleep(absl::Milliseconds(5));
  };
  RunOn(reactor(), run);
}

TEST(ReactorStopTest, WhatWasPostedBeforeHasRun) {
  for (int round = 0; round < 100; ++round) {
    auto reactor = Reactor::Create();
    ASSERT_TRUE(reactor.ok()) << reactor.status();
    std::thread thread([&] { (*reactor)->Run(); });
    std::atomic<int> ran = 0;
    std::vector<std::thread> posters;
    for (int p = 0; p < 3; ++p) {
      posters.emplace_back([&] {
        for (int i = 0; i < 20; ++i) (*reactor)->Post([&ran] { ++ran; });
      });
    }
    for (std::thread& poster : posters) poster.join();
    (*reactor)->Stop();
    thread.join();
    EXPECT_EQ(ran, 60);
  }
}

// Whatever is still on its way to the reactor when it ends, nothing is written to its memory later.
TEST(ReactorStopTest, StopAgainstPosts) {
  for (int round = 0; round < 100; ++round) {
    auto reactor = Reactor::Create();
    ASSERT_TRUE(reactor.ok()) << reactor.status();
    std::thread thread([&] { (*reactor)->Run(); });
    std::thread poster([&] {
      for (int i = 0; i < 50; ++i) (*reactor)->Post([] {});
    });
    (*reactor)->Stop();
    (*reactor)->Stop();
    thread.join();
    poster.join();
    reactor->reset();
  }
}

TEST(ReactorStopTest, BeforeRun) {
  auto reactor = Reactor::Create();
  ASSERT_TRUE(reactor.ok()) << reactor.status();
  bool ran = false;
  (*reactor)->Post([&ran] { ran = true; });
  (*reactor)->Stop();
  (*reactor)->Run();
  EXPECT_TRUE(ran);
}

TEST(ReactorStopTest, NeverRun) {
  auto reactor = Reactor::Create();
  ASSERT_TRUE(reactor.ok()) << reactor.status();
  auto kept = std::make_shared<int>(0);
  (*reactor)->Post([kept] {});
  EXPECT_EQ(kept.use_count(), 2);
  reactor->reset();
  EXPECT_EQ(kept.use_count(), 1);
}

// A signal interrupts the wait and nothing else.
TEST(ReactorStopTest, SignalsInterruptNothing) {
  struct sigaction action = {}, before = {};
  action.sa_handler = [](int) {};
  ASSERT_EQ(sigaction(SIGUSR1, &action, &before), 0);
  auto reactor = Reactor::Create();
  ASSERT_TRUE(reactor.ok()) << reactor.status();
  std::thread thread([&] { (*reactor)->Run(); });
  auto sleep = [&]() -> Task<int> {
    co_await (*reactor)->Sleep(absl::Milliseconds(5));
    co_return 1;
  };
  std::atomic<bool> done = false;
  std::thread killer([&] {
    while (!done) {
      pthread_kill(thread.native_handle(), SIGUSR1);
      std::this_thread::yield();
    }
  });
  EXPECT_EQ(RunOn(**reactor, sleep), 1);
  done = true;
  killer.join();
  (*reactor)->Stop();
  thread.join();
  sigaction(SIGUSR1, &before, nullptr);
}

TEST(MutexTest, AnInfiniteDeadlineIsNotOver) {
  Mutex mutex;
  CondVar changed;
  bool ready = false;
  std::thread signaller;
  {
    MutexLock lock(&mutex);
    signaller = std::thread([&] {
      MutexLock inner(&mutex);
      ready = true;
      changed.Signal();
    });
    while (!ready) EXPECT_TRUE(changed.WaitUntil(&mutex, absl::InfiniteFuture()));
    EXPECT_FALSE(changed.WaitUntil(&mutex, absl::InfinitePast()));
  }
  signaller.join();
}

}  // namespace
}  // namespace berth
