// RequestWatch: hears of an export's requests, counts them, and says on the event stream when they begin to
// fail.
#ifndef BERTH_CONTROL_REQUEST_WATCH_H_
#define BERTH_CONTROL_REQUEST_WATCH_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "control/event_hub.h"
#include "control/metrics/export_metrics.h"
#include "image/io/io_result.h"
#include "nbd/export.h"

namespace berth::control {

// Thread-safe. Lifetime: `events` outlives it.
class RequestWatch final : public nbd::RequestObserver {
 public:
  RequestWatch(std::string export_name, std::shared_ptr<ExportMetrics> metrics, EventHub* events);

  void Completed(nbd::Operation operation, uint64_t bytes, absl::Duration latency, IoResult result) override {
    metrics_->Completed(operation, bytes, latency, result);
    if (!result.ok()) [[unlikely]]
      Failed(operation, result);
  }

 private:
  void Failed(nbd::Operation operation, IoResult result);

  const std::string export_name_;
  const std::shared_ptr<ExportMetrics> metrics_;
  EventHub* const events_;
  // When the last failure was told of, in seconds of the Unix epoch: a failing disk is one event a minute,
  // not one a request.
  std::atomic<int64_t> told_ = 0;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_REQUEST_WATCH_H_
