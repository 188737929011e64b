// The daemon's log: one line an event on standard error, `LEVEL message key=value …`, for a person and for
// grep.
//
// Thread-safe. Values are quoted where they hold anything but plain characters, so that what a client chose
// cannot make a line of its own.
#ifndef BERTH_CONTROL_LOG_H_
#define BERTH_CONTROL_LOG_H_

#include <initializer_list>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

namespace berth::control {

enum class LogLevel { kInfo, kWarning, kError };

using LogFields = std::initializer_list<std::pair<absl::string_view, std::string>>;

// The line without its end, as Log() writes it.
std::string FormatLogLine(LogLevel level, absl::string_view message, LogFields fields);

void Log(LogLevel level, absl::string_view message, LogFields fields = {});

}  // namespace berth::control

#endif  // BERTH_CONTROL_LOG_H_
