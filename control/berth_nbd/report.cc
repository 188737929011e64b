#include "control/berth_nbd/report.h"

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "control/berth_nbd/one_line.h"
#include "nlohmann/json.hpp"

namespace berth::control {
void Report(absl::string_view program, bool json, const absl::Status& error) {
  const std::string message(error.message());
  std::string line;
  if (json) {
    const nlohmann::json value = {
        {"error", {{"code", absl::StatusCodeToString(error.code())}, {"message", message}}}};
    line = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  } else {
    line = absl::StrCat(
        program.substr(program.rfind('/') == absl::string_view::npos ? 0 : program.rfind('/') + 1), ": ",
        OneLine(message));
  }
  std::fprintf(stderr, "%s\n", line.c_str());
}

int DetachExitCode(const absl::Status& error) {
  switch (error.code()) {
    case absl::StatusCode::kOutOfRange:
      return 3;
    case absl::StatusCode::kFailedPrecondition:
      return 4;
    case absl::StatusCode::kPermissionDenied:
      return 5;
    default:
      return 1;
  }
}

}  // namespace berth::control
