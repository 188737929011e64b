#include "control/berthctl/rates.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>

namespace berth::berthctl {
namespace {

using Key = std::pair<std::string, int>;

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

}  // namespace

std::vector<Rate> RatesBetween(const v1::GetStatisticsResponse& before,
                               const v1::GetStatisticsResponse& after) {
  std::vector<Rate> rates;
  const double seconds = absl::ToDoubleSeconds(ToTime(after.time()) - ToTime(before.time()));
  if (seconds <= 0) return rates;
  std::map<Key, const v1::OperationStatistics*> earlier;
  for (const v1::ExportStatistics& one : before.exports()) {
    for (const v1::OperationStatistics& operation : one.operations()) {
      earlier[{one.export_(), operation.operation()}] = &operation;
    }
  }
  static const v1::OperationStatistics kNothing;
  for (const v1::ExportStatistics& one : after.exports()) {
    for (const v1::OperationStatistics& now : one.operations()) {
      const auto found = earlier.find({one.export_(), now.operation()});
      const bool known = found != earlier.end() && found->second->completed() <= now.completed();
      const v1::OperationStatistics& then = known ? *found->second : kNothing;
      const uint64_t completed = now.completed() - then.completed();
      if (completed == 0) continue;
      // Read one after the other, these may lag behind `completed` for a moment.
      const auto since = [](uint64_t later, uint64_t sooner) { return later > sooner ? later - sooner : 0; };
      rates.push_back(
          {one.export_(), now.operation(), static_cast<double>(completed) / seconds,
           static_cast<double>(since(now.bytes(), then.bytes())) / seconds,
           static_cast<double>(since(now.errors(), then.errors())) / seconds,
           absl::Nanoseconds(since(now.latency_nanoseconds(), then.latency_nanoseconds()) / completed)});
    }
  }
  std::sort(rates.begin(), rates.end(), [](const Rate& a, const Rate& b) {
    return std::tie(b.operations_per_second, a.export_name, a.operation) <
           std::tie(a.operations_per_second, b.export_name, b.operation);
  });
  return rates;
}

}  // namespace berth::berthctl
