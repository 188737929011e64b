// A sample of the server as Prometheus' metric families.
#ifndef BERTH_CONTROL_METRICS_PROMETHEUS_FAMILIES_H_
#define BERTH_CONTROL_METRICS_PROMETHEUS_FAMILIES_H_

#include <vector>

#include "control/metrics/metrics_sample.h"
#include "prometheus/metric_family.h"

namespace berth::control {

// An operation that an export never saw has no series, as ten thousand idle exports would otherwise be
// millions of them.
std::vector<prometheus::MetricFamily> PrometheusFamilies(const MetricsSample& sample);

}  // namespace berth::control

#endif  // BERTH_CONTROL_METRICS_PROMETHEUS_FAMILIES_H_
