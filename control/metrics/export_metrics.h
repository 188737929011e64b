// ExportMetrics: what one export did, counted as its requests complete.
#ifndef BERTH_CONTROL_METRICS_EXPORT_METRICS_H_
#define BERTH_CONTROL_METRICS_EXPORT_METRICS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/time/time.h"
#include "image/io/io_result.h"
#include "nbd/export.h"

namespace berth::control {

// The upper bounds of the latency histogram, inclusive, in nanoseconds: 1-2-5 steps from 1 us to 10 s. What
// took longer is counted in one bucket more.
inline constexpr std::array<uint64_t, 22> kLatencyBounds = {
    1'000,         2'000,         5'000,         10'000,        20'000,      50'000,
    100'000,       200'000,       500'000,       1'000'000,     2'000'000,   5'000'000,
    10'000'000,    20'000'000,    50'000'000,    100'000'000,   200'000'000, 500'000'000,
    1'000'000'000, 2'000'000'000, 5'000'000'000, 10'000'000'000};
inline constexpr size_t kLatencyBuckets = kLatencyBounds.size() + 1;

struct OperationMetrics {
  uint64_t completed = 0;  // Those that failed included.
  uint64_t errors = 0;
  uint64_t timeouts = 0;  // Of these, those that the image had not completed by their deadline (ETIMEDOUT).
  uint64_t bytes = 0;     // Of requests that succeeded; a question for extents has none, as it moves no data.
  uint64_t latency_nanoseconds = 0;
  std::array<uint64_t, kLatencyBuckets> latency_buckets{};  // Each counts its own alone, not cumulative.
};

// By nbd::Operation.
using OperationMetricsTable = std::array<OperationMetrics, nbd::kOperationCount>;

// Thread-safe. Each thread counts in memory of its own, so that reactors never share a cache line; that
// memory (about 1.5 KiB) is made by the first request that the thread completes.
class ExportMetrics final : public nbd::RequestObserver {
 public:
  ExportMetrics();
  ~ExportMetrics() override;
  ExportMetrics(const ExportMetrics&) = delete;
  ExportMetrics& operator=(const ExportMetrics&) = delete;

  void Completed(nbd::Operation operation, uint64_t bytes, absl::Duration latency, IoResult result) override;

  // The sums over all threads. While requests complete, each number is exact at some moment of the call, but
  // not all at the same.
  OperationMetricsTable Read() const;

 private:
  struct Shard;

  // The last shard is shared by the threads that came too late for one of their own.
  static constexpr size_t kShards = 64;

  Shard& ShardAt(size_t index);

  std::array<std::atomic<Shard*>, kShards> shards_{};
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_METRICS_EXPORT_METRICS_H_
