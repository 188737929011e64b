#include "nbd/zero_runs.h"

#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

using testing::ElementsAre;

constexpr size_t kG = kZeroGranule;
constexpr ContentRun Data(size_t length) { return {length, false}; }
constexpr ContentRun Zero(size_t length) { return {length, true}; }

// Data of `size` bytes that is zero in [begin, end) and nowhere else.
std::vector<uint8_t> ZeroIn(size_t size, size_t begin, size_t end) {
  std::vector<uint8_t> data(size, 0xdb);
  std::fill(data.begin() + static_cast<ptrdiff_t>(begin), data.begin() + static_cast<ptrdiff_t>(end),
            uint8_t{0});
  return data;
}

TEST(ZeroRunsTest, AllOfAKind) {
  EXPECT_TRUE(FindZeroRuns(0, {}).empty());
  for (const size_t size : {size_t{512}, size_t{4096}, kG, 10 * kG, 10 * kG + 1}) {
    for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, uint64_t{4096}, uint64_t{5} << 40}) {
      EXPECT_THAT(FindZeroRuns(offset, ZeroIn(size, 0, size)), ElementsAre(Zero(size)));
      EXPECT_THAT(FindZeroRuns(offset, ZeroIn(size, 0, 0)), ElementsAre(Data(size)));
    }
  }
}

TEST(ZeroRunsTest, OneByteMakesData) {
  for (const size_t at : {size_t{0}, size_t{1}, size_t{511}, size_t{4095}}) {
    std::vector<uint8_t> data(4096);
    data[at] = 1;
    EXPECT_THAT(FindZeroRuns(0, data), ElementsAre(Data(4096))) << at;
  }
}

TEST(ZeroRunsTest, RunsEndAtGranules) {
  // A byte less than the second granule, exactly it, and a byte more on either side.
  EXPECT_THAT(FindZeroRuns(0, ZeroIn(3 * kG, kG + 1, 2 * kG)), ElementsAre(Data(3 * kG)));
  EXPECT_THAT(FindZeroRuns(0, ZeroIn(3 * kG, kG, 2 * kG)), ElementsAre(Data(kG), Zero(kG), Data(kG)));
  EXPECT_THAT(FindZeroRuns(0, ZeroIn(3 * kG, kG - 1, 2 * kG + 1)), ElementsAre(Data(kG), Zero(kG), Data(kG)));
  // Granules are those of the export, and not of the read.
  EXPECT_THAT(FindZeroRuns(kG - 4096, ZeroIn(2 * kG, 4096, 4096 + kG)),
              ElementsAre(Data(4096), Zero(kG), Data(kG - 4096)));
}

TEST(ZeroRunsTest, ShortRunsAreData) {
  EXPECT_THAT(FindZeroRuns(0, std::vector<uint8_t>(511)), ElementsAre(Data(511)));
  EXPECT_THAT(FindZeroRuns(kG - 100, ZeroIn(kG, 0, 100)), ElementsAre(Data(kG)));
  EXPECT_THAT(FindZeroRuns(kG - 512, ZeroIn(kG, 0, 512)), ElementsAre(Zero(512), Data(kG - 512)));
}

}  // namespace
}  // namespace berth::nbd
