#include "control/berthctl/rates.h"

#include "control/berthctl/time_text.h"
#include "gtest/gtest.h"

namespace berth::berthctl {
namespace {

v1::GetStatisticsResponse Statistics(int64_t seconds, uint64_t completed, uint64_t bytes, uint64_t latency) {
  v1::GetStatisticsResponse response;
  response.mutable_time()->set_seconds(seconds);
  v1::ExportStatistics& disk = *response.add_exports();
  disk.set_export_("disk");
  v1::OperationStatistics& operation = *disk.add_operations();
  operation.set_operation(v1::IO_OPERATION_WRITE);
  operation.set_completed(completed);
  operation.set_bytes(bytes);
  operation.set_latency_nanoseconds(latency);
  return response;
}

TEST(RatesTest, DividesWhatCameByTheTimeBetween) {
  const auto rates = RatesBetween(Statistics(100, 10, 1000, 5000), Statistics(102, 30, 5000, 45000));
  ASSERT_EQ(rates.size(), 1u);
  EXPECT_EQ(rates[0].operations_per_second, 10);
  EXPECT_EQ(rates[0].bytes_per_second, 2000);
  EXPECT_EQ(rates[0].mean_latency, absl::Nanoseconds(2000));
}

TEST(RatesTest, LeavesOutWhatDidNothing) {
  EXPECT_TRUE(RatesBetween(Statistics(100, 10, 0, 0), Statistics(101, 10, 0, 0)).empty());
}

TEST(RatesTest, NoTimeIsNoRate) {
  EXPECT_TRUE(RatesBetween(Statistics(100, 10, 0, 0), Statistics(100, 20, 0, 0)).empty());
  EXPECT_TRUE(RatesBetween(Statistics(100, 10, 0, 0), Statistics(99, 20, 0, 0)).empty());
}

TEST(RatesTest, AnExportMadeAnewCountsFromZero) {
  const auto rates = RatesBetween(Statistics(100, 1000, 1000000, 9000000), Statistics(101, 5, 500, 50));
  ASSERT_EQ(rates.size(), 1u);
  EXPECT_EQ(rates[0].operations_per_second, 5);
  EXPECT_EQ(rates[0].bytes_per_second, 500);
}

TEST(RatesTest, TheBusiestComesFirst) {
  v1::GetStatisticsResponse after = Statistics(101, 5, 0, 0);
  v1::ExportStatistics& busy = *after.add_exports();
  busy.set_export_("busy");
  busy.add_operations()->set_operation(v1::IO_OPERATION_READ);
  busy.mutable_operations(0)->set_completed(50);
  const auto rates = RatesBetween(Statistics(100, 0, 0, 0), after);
  ASSERT_EQ(rates.size(), 2u);
  EXPECT_EQ(rates[0].export_name, "busy");
}

TEST(TimeTextTest, LatenciesHaveThreeFigures) {
  EXPECT_EQ(LatencyText(absl::Nanoseconds(850)), "850 ns");
  EXPECT_EQ(LatencyText(absl::Nanoseconds(1500)), "1.50 us");
  EXPECT_EQ(LatencyText(absl::Nanoseconds(12345)), "12.3 us");
  EXPECT_EQ(LatencyText(absl::Nanoseconds(999600)), "1.00 ms");
  EXPECT_EQ(LatencyText(absl::Milliseconds(123)), "123 ms");
  EXPECT_EQ(LatencyText(absl::Seconds(5000)), "5000 s");
}

}  // namespace
}  // namespace berth::berthctl
