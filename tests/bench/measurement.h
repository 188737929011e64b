// Measurement: what one server did under one workload, round by round.
#ifndef BERTH_TESTS_BENCH_MEASUREMENT_H_
#define BERTH_TESTS_BENCH_MEASUREMENT_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/bench/server.h"
#include "tests/bench/workload.h"

namespace berth::bench {

struct Round {
  double cpu_microseconds = 0;  // Of the server, a request.
  double requests_per_second = 0;
};

struct RoundOptions {
  absl::Duration warm_up = absl::Milliseconds(100);
  absl::Duration duration = absl::Milliseconds(350);
};

// One round. UNAVAILABLE where something else burnt more than a quarter of a core meanwhile: the round does
// not count.
absl::StatusOr<Round> MeasureRound(const RunningServer& server, const Workload& workload,
                                   const RoundOptions& options);

// By workload, then by server: the rounds that count.
using Results = std::map<std::string, std::map<std::string, std::vector<Round>>>;

// The medians of each measure on its own.
Round Median(const std::vector<Round>& rounds);

// A Markdown table: a line a workload, a column a server, CPU microseconds a request (thousands of requests a
// second), and the ratios of berth's CPU to the bare loop's and to the best peer's.
std::string Table(const std::vector<Workload>& workloads, const Results& results);

// The same for TlsServerNames(), with the ratios of Berth under TLS to Berth in clear and to the best peer
// under TLS.
std::string TlsTable(const std::vector<Workload>& workloads, const Results& results);

// All rounds, for programs.
std::string Json(const std::vector<Workload>& workloads, const Results& results);

}  // namespace berth::bench

#endif  // BERTH_TESTS_BENCH_MEASUREMENT_H_
