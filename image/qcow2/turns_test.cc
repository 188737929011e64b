#include "image/qcow2/turns.h"

#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"
#include "image/io/task.h"

namespace berth::qcow2 {
namespace {

Task<void> Work(Turns* turns, Reactor* reactor, int number, std::vector<int>* log, Gate::Holder) {
  Turns::Turn turn(*turns, *reactor);
  co_await turn;
  for (int i = 0; i < 3; ++i) {
    log->push_back(number);
    co_await reactor->Yield();
  }
}

TEST(TurnsTest, OneAtATimeInTheOrderTheyCame) {
  auto pool = ReactorPool::Create(1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  Reactor& reactor = (*pool)->at(0);
  Turns turns;
  std::vector<int> log;
  const auto run = [&]() -> Task<void> {
    for (int round = 0; round < 2; ++round) {  // It is free again after the last.
      Gate gate(reactor);
      for (int i = 0; i < 4; ++i) Spawn(Work(&turns, &reactor, i, &log, gate.Enter()));
      co_await gate.Close();
    }
  };
  RunOn(reactor, run);
  std::vector<int> expected;
  for (int i = 0; i < 24; ++i) expected.push_back(i / 3 % 4);
  EXPECT_EQ(log, expected);
}

Task<void> Count(Turns* turns, Reactor* reactor, int* inside, int* sum, Gate::Holder) {
  Turns::Turn turn(*turns, *reactor);
  co_await turn;
  EXPECT_EQ(++*inside, 1);
  co_await reactor->Yield();
  ++*sum;
  --*inside;
}

TEST(TurnsTest, ReactorsExcludeOneAnother) {
  auto pool = ReactorPool::Create(2);
  ASSERT_TRUE(pool.ok()) << pool.status();
  Turns turns;
  int inside = 0;
  int sum = 0;
  const auto run = [&](Reactor& reactor) -> Task<void> {
    Gate gate(reactor);
    for (int i = 0; i < 200; ++i) Spawn(Count(&turns, &reactor, &inside, &sum, gate.Enter()));
    co_await gate.Close();
  };
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] { RunOn((*pool)->at(i), [&] { return run((*pool)->at(i)); }); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sum, 400);
}

}  // namespace
}  // namespace berth::qcow2
