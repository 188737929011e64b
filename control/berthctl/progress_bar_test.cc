#include "control/berthctl/progress_bar.h"

#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace berth::berthctl {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kGiB = uint64_t{1} << 30;

v1::Operation Running(uint64_t done, uint64_t total, double seconds = 0) {
  v1::Operation operation;
  operation.set_state(v1::OPERATION_STATE_RUNNING);
  operation.set_unit(v1::OPERATION_UNIT_BYTES);
  operation.set_done(done);
  operation.set_total(total);
  operation.mutable_update_time()->set_seconds(1000 + static_cast<int64_t>(seconds));
  return operation;
}

TEST(ProgressLineTest, TellsShareAmountRateAndTimeLeft) {
  EXPECT_EQ(ProgressLine("image create /d", Running(50 * kGiB, 200 * kGiB), 2.0 * kGiB, 120),
            "image create /d  [##########..............................]  25%  50 GiB of 200 GiB  2 GiB/s  "
            "1m15s left");
  EXPECT_EQ(ProgressLine("d", Running(0, 200 * kGiB), 0, 80),
            "d  [..........................]   0%  0 B of 200 GiB");
  // Not 100% before the end.
  EXPECT_THAT(ProgressLine("d", Running(200 * kGiB - 1, 200 * kGiB), 0, 80), HasSubstr(".]  99%"));
  EXPECT_THAT(ProgressLine("d", Running(200 * kGiB, 200 * kGiB), 1.0 * kGiB, 80),
              AllOf(HasSubstr("#] 100%"), Not(HasSubstr("left"))));
}

TEST(ProgressLineTest, FitsEveryTerminal) {
  const std::string what = absl::StrCat("image create /", std::string(100, 'x'));
  for (const size_t columns : {0u, 1u, 20u, 40u, 80u, 120u, 200u}) {
    EXPECT_LE(ProgressLine(what, Running(kGiB, 200 * kGiB), 1e9, columns).size(), columns);
  }
  // The name gives way to the bar, and the bar to the figures.
  EXPECT_THAT(ProgressLine(what, Running(50 * kGiB, 200 * kGiB), 1e9, 80),
              testing::StartsWith("  [######.....................]  25%  50 GiB of 200 GiB"));
  EXPECT_THAT(ProgressLine(what, Running(50 * kGiB, 200 * kGiB), 1e9, 60),
              testing::StartsWith(" 25%  50 GiB of 200 GiB"));
}

TEST(ProgressLineTest, GuessesNothing) {
  v1::Operation unknown = Running(0, 0);
  EXPECT_EQ(ProgressLine("d", unknown, 0, 80), "d ");
  EXPECT_EQ(ProgressText(unknown), "-");
  unknown.set_done(kGiB);
  EXPECT_EQ(ProgressLine("d", unknown, 1024, 80), "d 1 GiB  1 KiB/s");
  v1::Operation counted = Running(7, 50);
  counted.set_unit(v1::OPERATION_UNIT_UNSPECIFIED);
  EXPECT_EQ(ProgressText(counted), "14%, 7 of 50");
  v1::Operation stopping = Running(kGiB, 2 * kGiB);
  stopping.set_cancel_requested(true);
  EXPECT_THAT(ProgressLine("d", stopping, 1e9, 80),
              AllOf(HasSubstr("being cancelled"), Not(HasSubstr("left"))));
}

TEST(ProgressBarTest, TheRateIsThatOfTheLastSeconds) {
  std::ostringstream out;
  std::ostringstream err;
  Console console{out, err};
  console.err_is_terminal = true;
  {
    ProgressBar bar(console, "d");
    bar.Update(Running(0, 200 * kGiB, 0));
    EXPECT_THAT(err.str(), Not(HasSubstr("/s")));
    bar.Update(Running(10 * kGiB, 200 * kGiB, 1));
    EXPECT_THAT(err.str(), HasSubstr("10 GiB/s"));
    for (int second = 2; second < 20; ++second) {
      err.str("");
      bar.Update(Running((9 + second) * kGiB, 200 * kGiB, second));
    }
    EXPECT_THAT(err.str(), AllOf(HasSubstr(" 1 GiB/s"), HasSubstr("2m52s left")));
  }
  EXPECT_THAT(err.str(), testing::EndsWith("\r\033[K"));
}

TEST(ProgressBarTest, NothingWhereThereIsNoTerminal) {
  std::ostringstream out;
  std::ostringstream err;
  Console console{out, err};
  {
    ProgressBar bar(console, "d");
    bar.Update(Running(0, 200 * kGiB));
  }
  EXPECT_EQ(err.str(), "");
}

}  // namespace
}  // namespace berth::berthctl
