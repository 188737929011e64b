// The load generator: a lean NBD client that keeps a fixed number of requests in flight and counts answers.
//
// One thread, any number of connections, both directions batched: one receive takes as many replies as have
// come, and the requests that replace them go out in one send. It burns so little that the server is what is
// measured.
#ifndef BERTH_TESTS_BENCH_LOAD_H_
#define BERTH_TESTS_BENCH_LOAD_H_

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tests/bench/workload.h"

namespace berth::bench {

struct LoadTarget {
  std::string socket_path;  // A Unix socket; where empty, 127.0.0.1:port.
  int port = 0;
  std::string export_name;
  bool tls = false;  // Whoever the server says it is.
};

struct LoadResult {
  uint64_t requests = 0;
  absl::Duration elapsed;
};

// Connects, keeps `workload` going for `warm_up`, calls `mark`, goes on for `duration`, calls `mark` again
// and waits for what is in flight. `mark` reads the server's clock. Fails on any error reply: a fast error is
// no result.
absl::StatusOr<LoadResult> RunLoad(const LoadTarget& target, const Workload& workload, absl::Duration warm_up,
                                   absl::Duration duration, absl::FunctionRef<void()> mark);

}  // namespace berth::bench

#endif  // BERTH_TESTS_BENCH_LOAD_H_
