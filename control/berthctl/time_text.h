// Times and latencies as people read them.
#ifndef BERTH_CONTROL_BERTHCTL_TIME_TEXT_H_
#define BERTH_CONTROL_BERTHCTL_TIME_TEXT_H_

#include <string>

#include "absl/time/time.h"
#include "google/protobuf/timestamp.pb.h"

namespace berth::berthctl {

// "2026-03-01 17:04:05.123" in the local time zone; "-" for a time that is not set.
std::string TimeText(const google::protobuf::Timestamp& time);

// With three figures at most: "850 ns", "12.3 us", "4.56 ms", "2.3 s".
std::string LatencyText(absl::Duration latency);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_TIME_TEXT_H_
