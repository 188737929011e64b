// MetricsSample: what there is to count, at the moment of a scrape.
#ifndef BERTH_CONTROL_METRICS_METRICS_SAMPLE_H_
#define BERTH_CONTROL_METRICS_METRICS_SAMPLE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "control/metrics/export_metrics.h"

namespace berth::control {

struct ExportSample {
  std::string name;
  uint64_t size_bytes = 0;
  uint32_t connections = 0;
  std::shared_ptr<const ExportMetrics> metrics;  // Null shows no requests.
};

// What is missing here vanishes from the answer.
struct MetricsSample {
  std::vector<ExportSample> exports;
  // How many attachments are in each state: "attaching", "attached", "detaching", "failed".
  std::map<std::string, uint64_t> attachments;
  uint64_t stuck_reactors = 0;
};

// Called at every scrape, on a thread of the endpoint's and by several at once; must not wait for I/O.
using MetricsSource = std::function<MetricsSample()>;

}  // namespace berth::control

#endif  // BERTH_CONTROL_METRICS_METRICS_SAMPLE_H_
