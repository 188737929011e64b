#include "control/berthctl/time_text.h"

#include <cstddef>

#include "absl/strings/str_format.h"

namespace berth::berthctl {

std::string TimeText(const google::protobuf::Timestamp& time) {
  if (time.seconds() == 0 && time.nanos() == 0) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%E3S",
                          absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos()),
                          absl::LocalTimeZone());
}

std::string LatencyText(absl::Duration latency) {
  static constexpr const char* kUnits[] = {"ns", "us", "ms", "s"};
  double value = absl::ToDoubleNanoseconds(latency);
  size_t unit = 0;
  while (value >= 999.5 && unit < 3) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.*f %s",
                         unit == 0 || value >= 99.95 ? 0
                         : value >= 9.995            ? 1
                                                     : 2,
                         value, kUnits[unit]);
}

}  // namespace berth::berthctl
