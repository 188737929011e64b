// Trace: what --trace prints while clients are served.
//
// Events: nbd_client_connected and nbd_client_left, of clients that have the export, nbd_client_rejected, and
// nbd_request, of every request when it completes.
#ifndef BERTH_CONTROL_BERTH_NBD_TRACE_H_
#define BERTH_CONTROL_BERTH_NBD_TRACE_H_

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "image/io/unique_fd.h"
#include "nbd/export.h"

namespace berth::control {

// Thread-safe.
class Trace {
 public:
  enum Event { kClientConnected, kClientLeft, kClientRejected, kRequest };
  static constexpr int kEventCount = 4;

  // Of options as they are given: `[[enable=]PATTERN][,events=FILE][,file=FILE]`. A pattern has `*` and `?`;
  // one with `-` in front turns off. FILE of `events` has a pattern a line, FILE of `file` is appended to;
  // without it events go to standard error. INVALID_ARGUMENT, or the system's reason with the file's name.
  static absl::StatusOr<std::unique_ptr<Trace>> Open(const std::vector<std::string>& options);

  // Their names, one a line.
  static std::string Names();

  // Patterns without `*` and `?` that are no event's name: qemu's events have other names.
  const std::vector<std::string>& unknown() const { return unknown_; }

  bool wants(Event event) const { return wanted_[event]; }
  // One line, with the time.
  void Write(Event event, absl::string_view text) const;

 private:
  Trace() = default;
  void Apply(absl::string_view pattern);
  absl::Status ApplyFile(const std::string& path);

  std::array<bool, kEventCount> wanted_{};
  std::vector<std::string> unknown_;
  UniqueFd file_;  // None: standard error.
};

// Hands completed requests on to both. Either may be null.
class RequestTrace final : public nbd::RequestObserver {
 public:
  RequestTrace(std::shared_ptr<const Trace> trace, std::shared_ptr<nbd::RequestObserver> next)
      : trace_(std::move(trace)), next_(std::move(next)) {}

  void Completed(nbd::Operation operation, uint64_t bytes, absl::Duration latency, IoResult result) override;

 private:
  const std::shared_ptr<const Trace> trace_;
  const std::shared_ptr<nbd::RequestObserver> next_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_TRACE_H_
