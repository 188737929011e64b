#include "control/log.h"

#include <unistd.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace berth::control {
namespace {

// Longer values say nothing more to a reader.
constexpr size_t kMaxValueBytes = 1000;

absl::string_view LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kInfo:
      return "INFO";
    case LogLevel::kWarning:
      return "WARNING";
    case LogLevel::kError:
      return "ERROR";
  }
  return "ERROR";
}

bool IsPlain(absl::string_view value) {
  return !value.empty() && std::all_of(value.begin(), value.end(), [](unsigned char c) {
    return absl::ascii_isgraph(c) && c != '"' && c != '\\' && c != '=';
  });
}

}  // namespace

std::string FormatLogLine(LogLevel level, absl::string_view message, LogFields fields) {
  std::string line = absl::StrCat(LevelName(level), " ", message);
  for (const auto& [key, value] : fields) {
    const absl::string_view shown = absl::string_view(value).substr(0, kMaxValueBytes);
    if (IsPlain(shown)) {
      absl::StrAppend(&line, " ", key, "=", shown);
    } else {
      absl::StrAppend(&line, " ", key, "=\"", absl::CHexEscape(shown), "\"");
    }
  }
  return line;
}

void Log(LogLevel level, absl::string_view message, LogFields fields) {
  const std::string line = absl::StrCat(FormatLogLine(level, message, fields), "\n");
  // One write, so that lines of several threads do not mix. A log that cannot be written is nobody's failure.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace berth::control
