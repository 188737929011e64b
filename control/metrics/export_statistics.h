// The counters of an export as the messages of the API.
#ifndef BERTH_CONTROL_METRICS_EXPORT_STATISTICS_H_
#define BERTH_CONTROL_METRICS_EXPORT_STATISTICS_H_

#include "berth/v1/monitoring.pb.h"
#include "control/metrics/export_metrics.h"

namespace berth::control {

// Sets `operations`: every operation there is, in the order of the enumeration, also those that were never
// used. The rest of `statistics` is the caller's.
void FillStatistics(const ExportMetrics& metrics, v1::ExportStatistics& statistics);

}  // namespace berth::control

#endif  // BERTH_CONTROL_METRICS_EXPORT_STATISTICS_H_
