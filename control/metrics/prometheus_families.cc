#include "control/metrics/prometheus_families.h"

#include <cstddef>
#include <limits>
#include <string>
#include <utility>

#include "control/version/version.h"

namespace berth::control {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr double kNanosecondsPerSecond = 1e9;

// By nbd::Operation.
constexpr const char* kOperationNames[nbd::kOperationCount] = {"read", "write",    "flush",  "discard",
                                                               "zero", "prefetch", "extents"};

MetricFamily Family(const char* name, const char* help, MetricType type) {
  MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

ClientMetric Counter(std::vector<ClientMetric::Label> labels, double value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.counter.value = value;
  return metric;
}

ClientMetric Gauge(std::vector<ClientMetric::Label> labels, double value) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  return metric;
}

ClientMetric Histogram(std::vector<ClientMetric::Label> labels, const OperationMetrics& operation) {
  ClientMetric metric;
  metric.label = std::move(labels);
  metric.histogram.sample_count = operation.completed;
  metric.histogram.sample_sum = static_cast<double>(operation.latency_nanoseconds) / kNanosecondsPerSecond;
  uint64_t cumulative = 0;
  for (size_t bucket = 0; bucket < kLatencyBuckets; ++bucket) {
    cumulative += operation.latency_buckets[bucket];
    const double bound = bucket < kLatencyBounds.size()
                             ? static_cast<double>(kLatencyBounds[bucket]) / kNanosecondsPerSecond
                             : std::numeric_limits<double>::infinity();
    metric.histogram.bucket.push_back({cumulative, bound});
  }
  return metric;
}

struct RequestFamilies {
  MetricFamily requests =
      Family("berth_requests_total", "Completed requests, failed ones included.", MetricType::Counter);
  MetricFamily errors =
      Family("berth_request_errors_total", "Requests answered with an error.", MetricType::Counter);
  MetricFamily timeouts =
      Family("berth_request_timeouts_total",
             "Requests answered with an error as the image had not completed them by their deadline.",
             MetricType::Counter);
  MetricFamily bytes =
      Family("berth_request_bytes_total", "Bytes of requests that succeeded.", MetricType::Counter);
  MetricFamily duration = Family("berth_request_duration_seconds",
                                 "Time from a request's arrival to its completion.", MetricType::Histogram);
};

void AddRequests(const ExportSample& sample, RequestFamilies& families) {
  const OperationMetricsTable table = sample.metrics->Read();
  for (size_t i = 0; i < table.size(); ++i) {
    const OperationMetrics& operation = table[i];
    if (operation.completed == 0) continue;
    const std::vector<ClientMetric::Label> labels = {{"export", sample.name},
                                                     {"operation", kOperationNames[i]}};
    families.requests.metric.push_back(Counter(labels, static_cast<double>(operation.completed)));
    families.errors.metric.push_back(Counter(labels, static_cast<double>(operation.errors)));
    families.timeouts.metric.push_back(Counter(labels, static_cast<double>(operation.timeouts)));
    families.bytes.metric.push_back(Counter(labels, static_cast<double>(operation.bytes)));
    families.duration.metric.push_back(Histogram(labels, operation));
  }
}

}  // namespace

std::vector<MetricFamily> PrometheusFamilies(const MetricsSample& sample) {
  MetricFamily build = Family("berth_build_info", "The version that runs; always 1.", MetricType::Gauge);
  build.metric.push_back(Gauge({{"version", kVersion}}, 1));
  MetricFamily sizes =
      Family("berth_export_size_bytes", "What clients see as the export's size.", MetricType::Gauge);
  MetricFamily connections = Family(
      "berth_export_connections", "Open NBD connections, those of attachments included.", MetricType::Gauge);
  RequestFamilies requests;
  for (const ExportSample& one : sample.exports) {
    sizes.metric.push_back(Gauge({{"export", one.name}}, static_cast<double>(one.size_bytes)));
    connections.metric.push_back(Gauge({{"export", one.name}}, one.connections));
    if (one.metrics != nullptr) AddRequests(one, requests);
  }
  MetricFamily attachments =
      Family("berth_attachments", "Devices of the local kernel, by state.", MetricType::Gauge);
  for (const auto& [state, count] : sample.attachments) {
    attachments.metric.push_back(Gauge({{"state", state}}, static_cast<double>(count)));
  }

  MetricFamily reactors =
      Family("berth_reactors_stuck", "Threads of I/O that do not turn: see the log.", MetricType::Gauge);
  reactors.metric.push_back(Gauge({}, static_cast<double>(sample.stuck_reactors)));

  std::vector<MetricFamily> families;
  for (MetricFamily* family : {&build, &sizes, &connections, &attachments, &reactors, &requests.requests,
                               &requests.errors, &requests.timeouts, &requests.bytes, &requests.duration}) {
    // A family without a series would be a header alone.
    if (!family->metric.empty()) families.push_back(std::move(*family));
  }
  return families;
}

}  // namespace berth::control
