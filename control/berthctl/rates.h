// Rates: what exports do a second, from two answers of GetStatistics.
#ifndef BERTH_CONTROL_BERTHCTL_RATES_H_
#define BERTH_CONTROL_BERTHCTL_RATES_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "berth/v1/monitoring.pb.h"

namespace berth::berthctl {

struct Rate {
  std::string export_name;
  v1::IoOperation operation = v1::IO_OPERATION_UNSPECIFIED;
  double operations_per_second = 0;
  double bytes_per_second = 0;
  double errors_per_second = 0;
  absl::Duration mean_latency;
};

// What happened between the two, the busiest first; what did nothing is left out. Counters that went back
// belong to an export that was made anew, and count from zero. Empty where no time lies between.
std::vector<Rate> RatesBetween(const v1::GetStatisticsResponse& before,
                               const v1::GetStatisticsResponse& after);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_RATES_H_
