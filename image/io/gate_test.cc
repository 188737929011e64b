#include "image/io/gate.h"

#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"

namespace berth {
namespace {

class GateTest : public testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }
  Reactor& reactor() { return pool_->at(0); }

  std::unique_ptr<ReactorPool> pool_;
};

TEST_F(GateTest, AnEmptyGateClosesAtOnce) {
  auto run = [this]() -> Task<bool> {
    Gate gate(reactor());
    EXPECT_FALSE(gate.closed());
    co_await gate.Close();
    co_return gate.closed();
  };
  EXPECT_TRUE(RunOn(reactor(), run));
}

TEST_F(GateTest, AMovedHolderCountsOnce) {
  auto run = [this]() -> Task<void> {
    Gate gate(reactor());
    {
      Gate::Holder first = gate.Enter();
      Gate::Holder second = std::move(first);
      EXPECT_EQ(gate.inside(), 1u);
      Gate::Holder nobody;
      Gate::Holder still_nobody = std::move(nobody);
    }
    EXPECT_EQ(gate.inside(), 0u);
    co_await gate.Close();
  };
  RunOn(reactor(), run);
}

TEST_F(GateTest, WhoIsInsideMayBringInAnotherAfterClose) {
  int left = 0;
  auto run = [&]() -> Task<void> {
    Gate gate(reactor());
    Spawn([](Reactor& ring, Gate& around, int* count, Gate::Holder) -> Task<void> {
      co_await ring.Yield();
      EXPECT_TRUE(around.closed());
      Spawn([](Reactor& again, int* inner, Gate::Holder) -> Task<void> {
        co_await again.Sleep(absl::Milliseconds(1));
        ++*inner;
      }(ring, count, around.Enter()));
      ++*count;
    }(reactor(), gate, &left, gate.Enter()));
    co_await gate.Close();
    EXPECT_EQ(left, 2);
  };
  RunOn(reactor(), run);
}

// The waiter frees what the last holder's frame points to; the frame must be gone by then.
TEST_F(GateTest, TheWaiterGoesOnAfterTheLastFrameIsGone) {
  struct Owner {
    explicit Owner(Reactor& reactor) : gate(reactor) {}
    ~Owner() { *alive = false; }
    Gate gate;
    bool* alive = nullptr;
  };
  struct Check {
    Check(bool* owner_alive, bool* seen) : owner_alive(owner_alive), seen(seen) {}
    Check(Check&& other) noexcept
        : owner_alive(std::exchange(other.owner_alive, nullptr)), seen(other.seen) {}
    ~Check() {
      if (owner_alive != nullptr) *seen = *owner_alive;
    }
    bool* owner_alive;
    bool* seen;
  };
  bool alive = true;
  bool alive_at_the_end_of_the_frame = false;
  auto run = [&]() -> Task<void> {
    auto owner = std::make_unique<Owner>(reactor());
    owner->alive = &alive;
    // Arguments are destroyed in no order that could be relied on: the check is made after the gate was left.
    Spawn([](Reactor& ring, Check, Gate::Holder) -> Task<void> {
      co_await ring.Yield();
    }(reactor(), Check(&alive, &alive_at_the_end_of_the_frame), owner->gate.Enter()));
    co_await owner->gate.Close();
    owner.reset();
  };
  RunOn(reactor(), run);
  EXPECT_FALSE(alive);
  EXPECT_TRUE(alive_at_the_end_of_the_frame);
}

}  // namespace
}  // namespace berth
