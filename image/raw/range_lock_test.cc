#include "image/raw/range_lock.h"

#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"

namespace berth {
namespace {

using Kind = RangeLock::Kind;

// Holds a range, says so, and lets go after some turns of the reactor.
Task<void> HoldFor(RangeLock* lock, Reactor& reactor, uint64_t begin, uint64_t end, Kind kind,
                   std::string name, int turns, std::vector<std::string>* log, Gate::Holder) {
  {
    RangeLock::Hold hold(lock, reactor, begin, end, kind);
    co_await hold;
    log->push_back("+" + name);
    for (int i = 0; i < turns; ++i) co_await reactor.Yield();
    log->push_back("-" + name);
  }
}

class RangeLockTest : public testing::Test {
 protected:
  // Runs the holds that `start` spawns to their end and returns what they said.
  template <typename Start>
  std::vector<std::string> Run(Start start) {
    auto pool = ReactorPool::Create(1);
    EXPECT_TRUE(pool.ok());
    Reactor& reactor = (*pool)->at(0);
    std::vector<std::string> log;
    auto run = [&]() -> Task<void> {
      Gate gate(reactor);
      start([&](uint64_t begin, uint64_t end, Kind kind, std::string name, int turns) {
        Spawn(HoldFor(&lock_, reactor, begin, end, kind, std::move(name), turns, &log, gate.Enter()));
      });
      co_await gate.Close();
    };
    RunOn(reactor, run);
    return log;
  }
  RangeLock lock_;
};

TEST_F(RangeLockTest, OverlappingExclusiveHoldsFollowEachOther) {
  const auto log = Run([](auto hold) {
    hold(0, 100, Kind::kExclusive, "a", 3);
    hold(50, 150, Kind::kExclusive, "b", 1);
    hold(100, 200, Kind::kExclusive, "c", 1);
  });
  EXPECT_EQ(log, (std::vector<std::string>{"+a", "-a", "+b", "-b", "+c", "-c"}));
}

TEST_F(RangeLockTest, SharedHoldsAndDistinctRangesGoTogether) {
  const auto log = Run([](auto hold) {
    hold(0, 100, Kind::kShared, "a", 2);
    hold(50, 150, Kind::kShared, "b", 2);
    hold(200, 300, Kind::kExclusive, "c", 2);
  });
  EXPECT_EQ(std::vector<std::string>(log.begin(), log.begin() + 3),
            (std::vector<std::string>{"+a", "+b", "+c"}));
}

TEST_F(RangeLockTest, AnExclusiveHoldIsNotOvertaken) {
  const auto log = Run([](auto hold) {
    hold(0, 100, Kind::kShared, "reader", 3);
    hold(0, 100, Kind::kExclusive, "writer", 1);
    hold(0, 100, Kind::kShared, "late", 1);
  });
  EXPECT_EQ(log, (std::vector<std::string>{"+reader", "-reader", "+writer", "-writer", "+late", "-late"}));
}

TEST_F(RangeLockTest, KeepsReactorsApart) {
  constexpr int kReactors = 3;
  constexpr uint64_t kSlots = 16;
  auto pool = ReactorPool::Create(kReactors);
  ASSERT_TRUE(pool.ok());
  // Plain integers: the lock alone keeps them right (and ThreadSanitizer sees it where it does not).
  std::vector<int> slots(kSlots);
  std::vector<std::thread> threads;
  for (int r = 0; r < kReactors; ++r) {
    threads.emplace_back([&, r] {
      Reactor& reactor = (*pool)->at(static_cast<size_t>(r));
      auto run = [&]() -> Task<void> {
        std::mt19937 random(static_cast<unsigned>(r));
        for (int round = 0; round < 50; ++round) {
          Gate gate(reactor);
          for (int i = 0; i < 20; ++i) {
            const uint64_t begin = random() % kSlots;
            const uint64_t end = begin + 1 + random() % (kSlots - begin);
            Spawn([](RangeLock* lock, Reactor& ring, uint64_t from, uint64_t to, std::vector<int>* values,
                     Gate::Holder) -> Task<void> {
              RangeLock::Hold hold(lock, ring, from, to, Kind::kExclusive);
              co_await hold;
              for (uint64_t s = from; s < to; ++s) EXPECT_EQ((*values)[s]++, 0);
              co_await ring.Yield();
              for (uint64_t s = from; s < to; ++s) EXPECT_EQ((*values)[s]--, 1);
            }(&lock_, reactor, begin, end, &slots, gate.Enter()));
          }
          co_await gate.Close();
        }
      };
      RunOn(reactor, run);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace berth
