#include "control/ending_process.h"

#include <signal.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace berth::control {
namespace {

// A mask of signals as /proc/PID/status writes it.
bool HasKill(absl::string_view mask) {
  uint64_t signals = 0;
  return absl::SimpleHexAtoi(absl::StripAsciiWhitespace(mask), &signals) &&
         (signals & uint64_t{1} << (SIGKILL - 1)) != 0;
}

}  // namespace

bool IsEnding(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/status"));
  if (!file) return true;
  std::string line;
  while (std::getline(file, line)) {
    absl::string_view value = line;
    if (absl::ConsumePrefix(&value, "State:")) {
      value = absl::StripAsciiWhitespace(value);
      if (absl::StartsWith(value, "Z") || absl::StartsWith(value, "X")) return true;
    } else if (absl::ConsumePrefix(&value, "SigPnd:") || absl::ConsumePrefix(&value, "ShdPnd:")) {
      if (HasKill(value)) return true;
    }
  }
  // PF_EXITING of the flags, which are the seventh word after the name in parentheses.
  std::ifstream stat_file(absl::StrCat("/proc/", pid, "/stat"));
  if (!std::getline(stat_file, line)) return true;
  const std::vector<std::string> words =
      absl::StrSplit(absl::string_view(line).substr(line.rfind(')') + 1), ' ', absl::SkipEmpty());
  constexpr size_t kFlags = 6;
  constexpr uint32_t kExiting = 0x4;
  uint32_t flags = 0;
  return words.size() > kFlags && absl::SimpleAtoi(words[kFlags], &flags) && (flags & kExiting) != 0;
}

}  // namespace berth::control
