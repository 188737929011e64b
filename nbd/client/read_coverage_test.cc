#include "nbd/client/read_coverage.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

using Outcome = ReadCoverage::Outcome;

TEST(ReadCoverageTest, InOrder) {
  ReadCoverage coverage(100, 30);
  EXPECT_EQ(coverage.Add(100, 10), Outcome::kAdded);
  EXPECT_EQ(coverage.Add(110, 19), Outcome::kAdded);
  EXPECT_FALSE(coverage.complete());
  EXPECT_EQ(coverage.Add(129, 1), Outcome::kAdded);
  EXPECT_TRUE(coverage.complete());
}

TEST(ReadCoverageTest, Outside) {
  ReadCoverage coverage(100, 30);
  for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{{99, 1},
                                                                                 {99, 2},
                                                                                 {130, 1},
                                                                                 {129, 2},
                                                                                 {100, 31},
                                                                                 {0, UINT64_MAX},
                                                                                 {110, UINT64_MAX},
                                                                                 {UINT64_MAX, 1},
                                                                                 {110, 0},
                                                                                 {101, UINT64_MAX - 100}}) {
    EXPECT_EQ(coverage.Add(offset, length), Outcome::kOutside) << offset << "+" << length;
  }
  EXPECT_EQ(coverage.covered(), 0u);
}

TEST(ReadCoverageTest, OverlapsFromEverySide) {
  ReadCoverage coverage(0, 100);
  ASSERT_EQ(coverage.Add(40, 20), Outcome::kAdded);
  for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{
           {40, 20}, {40, 1}, {59, 1}, {30, 11}, {59, 10}, {45, 5}, {0, 100}}) {
    EXPECT_EQ(coverage.Add(offset, length), Outcome::kOverlaps) << offset << "+" << length;
  }
  EXPECT_EQ(coverage.Add(30, 10), Outcome::kAdded);
  EXPECT_EQ(coverage.Add(60, 10), Outcome::kAdded);
  EXPECT_EQ(coverage.Add(69, 2), Outcome::kOverlaps);
  EXPECT_EQ(coverage.covered(), 40u);
}

TEST(ReadCoverageTest, TooScattered) {
  ReadCoverage coverage(0, 1 << 20);
  for (size_t i = 0; i < ReadCoverage::kMaxPieces; ++i) {
    ASSERT_EQ(coverage.Add(2 * i, 1), Outcome::kAdded);
  }
  EXPECT_EQ(coverage.Add(2 * ReadCoverage::kMaxPieces, 1), Outcome::kTooScattered);
  EXPECT_EQ(coverage.Add(1, 1), Outcome::kAdded);  // Joins two, so that there is room for one.
  EXPECT_EQ(coverage.Add(2 * ReadCoverage::kMaxPieces, 1), Outcome::kAdded);
}

// Against a byte map.
TEST(ReadCoverageTest, AgreesWithAModel) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    ReadCoverage coverage(10, 64);
    std::vector<bool> model(100);
    for (int step = 0; step < 60; ++step) {
      const uint64_t offset = random() % 90, length = random() % 12;
      const auto begin = model.begin() + static_cast<long>(offset), end = begin + static_cast<long>(length);
      const Outcome outcome = coverage.Add(offset, length);
      if (length == 0 || offset < 10 || offset + length > 74) {
        EXPECT_EQ(outcome, Outcome::kOutside);
      } else if (std::find(begin, end, true) != end) {
        EXPECT_EQ(outcome, Outcome::kOverlaps);
      } else {
        EXPECT_EQ(outcome, Outcome::kAdded);
        std::fill(begin, end, true);
      }
      EXPECT_EQ(coverage.covered(), static_cast<uint64_t>(std::count(model.begin(), model.end(), true)));
    }
  }
}

}  // namespace
}  // namespace berth::nbd
