#include "control/stop_guard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>

#include "absl/time/clock.h"

namespace berth::control {
namespace {

TEST(StopGuardTest, AStopThatHangsIsEnded) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const StopGuard guard(absl::Now());
        while (true) pause();
      },
      testing::ExitedWithCode(1), "not stopped in time");
}

TEST(StopGuardTest, AStopThatEndsIsLeftAlone) {
  std::optional<StopGuard> guard(absl::InfiniteFuture());
  guard.reset();
}

}  // namespace
}  // namespace berth::control
