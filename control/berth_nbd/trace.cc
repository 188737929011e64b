#include "control/berth_nbd/trace.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "control/berth_nbd/one_line.h"
#include "control/berth_nbd/option_list.h"

namespace berth::control {
namespace {

constexpr const char* kNames[Trace::kEventCount] = {"nbd_client_connected", "nbd_client_left",
                                                    "nbd_client_rejected", "nbd_request"};
constexpr const char* kOperations[nbd::kOperationCount] = {"read", "write",    "flush",  "discard",
                                                           "zero", "prefetch", "extents"};

}  // namespace

absl::StatusOr<std::unique_ptr<Trace>> Trace::Open(const std::vector<std::string>& options) {
  std::unique_ptr<Trace> trace(new Trace);
  for (const std::string& text : options) {
    absl::StatusOr<OptionList> list = ParseOptionList(text, "enable");
    if (!list.ok()) return absl::InvalidArgumentError(absl::StrCat("--trace: ", list.status().message()));
    for (const auto& [key, value] : *list) {
      if (key == "enable") {
        trace->Apply(value);
      } else if (key == "events") {
        if (absl::Status status = trace->ApplyFile(value); !status.ok()) return status;
      } else if (key == "file") {
        trace->file_.Reset(open(value.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
        if (!trace->file_) return absl::ErrnoToStatus(errno, absl::StrCat("--trace: file is '", value, "'"));
      } else {
        return absl::InvalidArgumentError(absl::StrCat("--trace: there is no option ", key.substr(0, 200),
                                                       "; known are enable, events and file"));
      }
    }
  }
  return trace;
}

std::string Trace::Names() {
  std::string names;
  for (const char* name : kNames) absl::StrAppend(&names, name, "\n");
  return names;
}

void Trace::Apply(absl::string_view text) {
  const bool on = !absl::ConsumePrefix(&text, "-");
  const std::string pattern(text);
  bool found = false;
  for (int event = 0; event < kEventCount; ++event) {
    if (fnmatch(pattern.c_str(), kNames[event], 0) != 0) continue;
    wanted_[static_cast<size_t>(event)] = on;
    found = true;
  }
  if (!found && pattern.find_first_of("*?[") == std::string::npos) unknown_.push_back(pattern.substr(0, 200));
}

absl::Status Trace::ApplyFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::ErrnoToStatus(errno, absl::StrCat("--trace: events is '", path, "'"));
  std::string line;
  while (std::getline(file, line)) {
    if (!line.empty() && line[0] != '#') Apply(line);
  }
  return absl::OkStatus();
}

void Trace::Write(Event event, absl::string_view text) const {
  const std::string line =
      absl::StrCat(absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ ", absl::Now(), absl::UTCTimeZone()), kNames[event],
                   " ", OneLine(text), "\n");
  // One call a line, so that those of several threads do not mix.
  [[maybe_unused]] const ssize_t written =
      write(file_ ? file_.get() : STDERR_FILENO, line.data(), line.size());
}

void RequestTrace::Completed(nbd::Operation operation, uint64_t bytes, absl::Duration latency,
                             IoResult result) {
  if (next_ != nullptr) next_->Completed(operation, bytes, latency, result);
  if (trace_ == nullptr || !trace_->wants(Trace::kRequest)) return;
  trace_->Write(Trace::kRequest,
                absl::StrCat(kOperations[static_cast<int>(operation)], " bytes=", bytes,
                             " microseconds=", absl::ToInt64Microseconds(latency), " errno=", result.error));
}

}  // namespace berth::control
