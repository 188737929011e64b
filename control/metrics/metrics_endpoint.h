// MetricsEndpoint: what the server counts, over HTTP for Prometheus (GET /metrics).
#ifndef BERTH_CONTROL_METRICS_METRICS_ENDPOINT_H_
#define BERTH_CONTROL_METRICS_METRICS_ENDPOINT_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "control/metrics/metrics_sample.h"

namespace berth::control {

// Serves until it is destroyed; the destructor waits for running scrapes, after which `source` is not called
// again.
class MetricsEndpoint {
 public:
  // `address` is "HOST:PORT", where HOST is an IPv4 address or a name that has one; port 0 takes a free one.
  // May block for a lookup of HOST. INVALID_ARGUMENT for what is no address, UNAVAILABLE where it cannot be
  // listened on.
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Start(absl::string_view address,
                                                                MetricsSource source);

  virtual ~MetricsEndpoint() = default;

  virtual uint16_t port() const = 0;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_METRICS_METRICS_ENDPOINT_H_
