#include "control/request_watch.h"

#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace berth::control {
namespace {

constexpr int64_t kQuietSeconds = 60;

absl::string_view OperationName(nbd::Operation operation) {
  switch (operation) {
    case nbd::Operation::kRead:
      return "read";
    case nbd::Operation::kWrite:
      return "write";
    case nbd::Operation::kFlush:
      return "flush";
    case nbd::Operation::kDiscard:
      return "discard";
    case nbd::Operation::kZero:
      return "zero";
    case nbd::Operation::kPrefetch:
      return "prefetch";
    case nbd::Operation::kExtents:
      return "extents";
  }
  return "request";
}

}  // namespace

RequestWatch::RequestWatch(std::string export_name, std::shared_ptr<ExportMetrics> metrics, EventHub* events)
    : export_name_(std::move(export_name)), metrics_(std::move(metrics)), events_(events) {}

void RequestWatch::Failed(nbd::Operation operation, IoResult result) {
  // What the image could not do at all, and said so in advance, is no failing disk.
  if (result.error == ENOTSUP || result.error == EPERM || result.error == ESHUTDOWN) return;
  const int64_t now = absl::ToUnixSeconds(absl::Now());
  int64_t told = told_.load(std::memory_order_relaxed);
  if (now - told < kQuietSeconds || !told_.compare_exchange_strong(told, now)) return;
  v1::Event event;
  event.set_type(v1::EVENT_TYPE_IO_ERROR);
  event.set_export_(export_name_);
  if (result.error == ETIMEDOUT) {
    event.set_message(absl::StrCat("a ", OperationName(operation),
                                   " was not completed by the image in time (--request-timeout): look at the "
                                   "storage below it"));
  } else {
    const absl::Status reason = absl::ErrnoToStatus(result.error, "");
    event.set_message(absl::StrCat("a ", OperationName(operation), " failed", reason.message()));
  }
  events_->Publish(std::move(event));
}

}  // namespace berth::control
