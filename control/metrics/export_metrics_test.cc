#include "control/metrics/export_metrics.h"

#include <cerrno>
#include <cstdint>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "control/metrics/export_statistics.h"
#include "gtest/gtest.h"

namespace berth::control {
namespace {

using nbd::Operation;

const OperationMetrics& At(const OperationMetricsTable& table, Operation operation) {
  return table[static_cast<size_t>(operation)];
}

TEST(ExportMetricsTest, CountsRequestsErrorsBytesAndLatencyByOperation) {
  ExportMetrics metrics;
  metrics.Completed(Operation::kRead, 4096, absl::Microseconds(3), IoResult::Ok());
  metrics.Completed(Operation::kRead, 8192, absl::Microseconds(4), IoResult::Ok());
  metrics.Completed(Operation::kRead, 512, absl::Microseconds(5), IoResult::Error(EIO));
  metrics.Completed(Operation::kFlush, 0, absl::Milliseconds(1), IoResult::Ok());
  metrics.Completed(Operation::kExtents, uint64_t{1} << 30, absl::Microseconds(1), IoResult::Ok());

  const OperationMetricsTable table = metrics.Read();
  const OperationMetrics& read = At(table, Operation::kRead);
  EXPECT_EQ(read.completed, 3u);
  EXPECT_EQ(read.errors, 1u);
  EXPECT_EQ(read.bytes, 12288u);
  EXPECT_EQ(read.latency_nanoseconds, 12000u);
  EXPECT_EQ(At(table, Operation::kFlush).completed, 1u);
  EXPECT_EQ(At(table, Operation::kFlush).latency_nanoseconds, 1000000u);
  EXPECT_EQ(At(table, Operation::kExtents).completed, 1u);
  EXPECT_EQ(At(table, Operation::kExtents).bytes, 0u);
  EXPECT_EQ(At(table, Operation::kWrite).completed, 0u);
}

TEST(ExportMetricsTest, EveryBoundIsInclusive) {
  for (size_t i = 0; i < kLatencyBounds.size(); ++i) {
    ExportMetrics metrics;
    metrics.Completed(Operation::kWrite, 0, absl::Nanoseconds(kLatencyBounds[i]), IoResult::Ok());
    metrics.Completed(Operation::kWrite, 0, absl::Nanoseconds(kLatencyBounds[i] + 1), IoResult::Ok());
    const OperationMetricsTable table = metrics.Read();
    EXPECT_EQ(At(table, Operation::kWrite).latency_buckets[i], 1u) << kLatencyBounds[i];
    EXPECT_EQ(At(table, Operation::kWrite).latency_buckets[i + 1], 1u) << kLatencyBounds[i];
  }
}

TEST(ExportMetricsTest, LatenciesOutsideEveryBoundAreCounted) {
  ExportMetrics metrics;
  metrics.Completed(Operation::kRead, 0, absl::ZeroDuration(), IoResult::Ok());
  metrics.Completed(Operation::kRead, 0, -absl::Seconds(1), IoResult::Ok());
  metrics.Completed(Operation::kRead, 0, absl::Hours(1), IoResult::Ok());
  metrics.Completed(Operation::kRead, 0, absl::InfiniteDuration(), IoResult::Ok());
  const OperationMetricsTable table = metrics.Read();
  EXPECT_EQ(At(table, Operation::kRead).latency_buckets.front(), 2u);
  EXPECT_EQ(At(table, Operation::kRead).latency_buckets.back(), 2u);
}

// More threads than shards, so that the shared one is used as well; each counts while another reads.
TEST(ExportMetricsTest, NothingIsLostBetweenThreads) {
  constexpr int kThreads = 100;
  constexpr int kRequests = 2000;
  ExportMetrics metrics;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&metrics] {
      for (int request = 0; request < kRequests; ++request) {
        metrics.Completed(Operation::kWrite, 512, absl::Nanoseconds(request), IoResult::Ok());
        metrics.Completed(Operation::kZero, 512, absl::Nanoseconds(1), IoResult::Error(ENOSPC));
      }
    });
  }
  uint64_t last = 0;
  for (int i = 0; i < 100; ++i) {
    const uint64_t now = At(metrics.Read(), Operation::kWrite).completed;
    EXPECT_GE(now, last);
    last = now;
  }
  for (std::thread& thread : threads) thread.join();

  const OperationMetricsTable table = metrics.Read();
  constexpr uint64_t kTotal = uint64_t{kThreads} * kRequests;
  EXPECT_EQ(At(table, Operation::kWrite).completed, kTotal);
  EXPECT_EQ(At(table, Operation::kWrite).bytes, kTotal * 512);
  EXPECT_EQ(At(table, Operation::kWrite).latency_nanoseconds,
            uint64_t{kThreads} * kRequests * (kRequests - 1) / 2);
  EXPECT_EQ(At(table, Operation::kZero).errors, kTotal);
  EXPECT_EQ(At(table, Operation::kZero).bytes, 0u);
}

TEST(ExportStatisticsTest, ShowsEveryOperation) {
  ExportMetrics metrics;
  metrics.Completed(Operation::kDiscard, 1 << 20, absl::Microseconds(7), IoResult::Ok());
  v1::ExportStatistics statistics;
  statistics.set_export_("disk");
  FillStatistics(metrics, statistics);
  FillStatistics(metrics, statistics);

  EXPECT_EQ(statistics.export_(), "disk");
  ASSERT_EQ(statistics.operations_size(), nbd::kOperationCount);
  for (int i = 0; i < nbd::kOperationCount; ++i) EXPECT_EQ(statistics.operations(i).operation(), i + 1);
  const v1::OperationStatistics& discard = statistics.operations(3);
  EXPECT_EQ(discard.operation(), v1::IO_OPERATION_DISCARD);
  EXPECT_EQ(discard.completed(), 1u);
  EXPECT_EQ(discard.bytes(), 1u << 20);
  EXPECT_EQ(discard.latency_nanoseconds(), 7000u);
}

}  // namespace
}  // namespace berth::control
