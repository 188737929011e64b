#include "control/name_turns.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "absl/time/clock.h"
#include "control/status_details.h"

namespace berth::control {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

TEST(NameTurnsTest, ATurnIsTakenByOneAndThenByTheNext) {
  NameTurns turns("export");
  auto first = std::make_unique<absl::StatusOr<NameTurns::Turn>>(turns.Take("a", Soon()));
  ASSERT_TRUE(first->ok());
  EXPECT_TRUE(turns.Take("b", absl::Now()).ok());
  const absl::Status refused = turns.Take("a", absl::Now()).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(refused)) << refused;
  EXPECT_EQ(ReasonOf(refused), "CALL_IN_PROGRESS");
  EXPECT_NE(refused.message().find("export \"a\""), absl::string_view::npos) << refused;
  std::thread waiting([&] { EXPECT_TRUE(turns.Take("a", Soon()).ok()); });
  first.reset();
  waiting.join();
  EXPECT_TRUE(turns.Take("a", absl::Now()).ok());
}

}  // namespace
}  // namespace berth::control
