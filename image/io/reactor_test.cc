#include "image/io/reactor.h"

#include <sys/socket.h>

#include <array>
#include <atomic>
#include <string>
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

}  // namespace
}  // namespace berth
