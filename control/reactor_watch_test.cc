#include "control/reactor_watch.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <map>

namespace berth::control {
namespace {

TEST(ReactorWatchTest, AReactorThatDoesNotTurnIsToldAndItsReturnToo) {
  auto reactors = ReactorPool::Create(2);
  ASSERT_TRUE(reactors.ok()) << reactors.status();
  std::promise<void> stands, stuck, turns;
  std::promise<void> go_on;
  bool told_stuck = false;
  bool told_turns = false;
  (*reactors)->at(1).Post([&] {
    stands.set_value();
    go_on.get_future().wait();
  });
  stands.get_future().wait();
  // The other one may be slow as well, on a busy machine.
  ReactorWatch watch(**reactors, absl::Milliseconds(40), [&](size_t reactor, absl::Duration silent) {
    if (reactor != 1) return;
    if (silent > absl::ZeroDuration()) {
      EXPECT_GE(silent, absl::Milliseconds(40));
      if (!std::exchange(told_stuck, true)) stuck.set_value();
    } else if (!std::exchange(told_turns, true)) {
      turns.set_value();
    }
  });
  ASSERT_EQ(stuck.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_GE(watch.stuck(), 1u);
  go_on.set_value();
  ASSERT_EQ(turns.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  watch.Stop();
}

}  // namespace
}  // namespace berth::control
