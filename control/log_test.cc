#include "control/log.h"

#include <gtest/gtest.h>

#include <string>

namespace berth::control {
namespace {

TEST(LogTest, ALineIsForPeopleAndGrep) {
  EXPECT_EQ(FormatLogLine(LogLevel::kInfo, "ready", {}), "INFO ready");
  EXPECT_EQ(FormatLogLine(LogLevel::kWarning, "client refused", {{"uid", "7"}, {"path", "/a b"}}),
            "WARNING client refused uid=7 path=\"/a b\"");
}

TEST(LogTest, NoValueMakesALineOrAFieldOfItsOwn) {
  const std::string line = FormatLogLine(
      LogLevel::kError, "failed",
      {{"path", "/x\nINFO forged"}, {"quote", "a\" uid=0 \""}, {"bytes", "\x1b[2J\xff\r"}, {"empty", ""}});
  EXPECT_EQ(line,
            "ERROR failed path=\"/x\\nINFO forged\" quote=\"a\\\" uid=0 \\\"\" bytes=\"\\x1b[2J\\xff\\r\" "
            "empty=\"\"");
  EXPECT_LT(FormatLogLine(LogLevel::kError, "long", {{"value", std::string(100000, '\n')}}).size(), 3000u);
}

}  // namespace
}  // namespace berth::control
