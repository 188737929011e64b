#include "nbd/block_sizes.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr Extent Data(uint64_t length) { return {length, true, false}; }
constexpr Extent Hole(uint64_t length) { return {length, false, true}; }

std::vector<Extent> Aligned(uint32_t minimum, std::vector<Extent> extents) {
  AlignExtents(minimum, &extents);
  return extents;
}

// "Size constraints".
TEST(BlockSizesTest, WhatMayBeConfigured) {
  EXPECT_TRUE(CheckBlockSizes({}).ok());
  EXPECT_TRUE(CheckBlockSizes({.minimum = 65536, .preferred = 65536, .maximum_payload = 1 << 20}).ok());
  EXPECT_TRUE(CheckBlockSizes({.preferred = 512}).ok());
  for (const uint32_t minimum : {0u, 3u, 513u, 131072u}) {
    const absl::Status status = CheckBlockSizes({.minimum = minimum});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(minimum)));
  }
  for (const uint32_t preferred : {1u, 256u, 513u, 0x80000000u}) {
    EXPECT_FALSE(CheckBlockSizes({.preferred = preferred}).ok()) << preferred;
  }
  EXPECT_FALSE(CheckBlockSizes({.minimum = 4096, .preferred = 2048}).ok());
  EXPECT_FALSE(CheckBlockSizes({.maximum_payload = (1 << 20) - 1}).ok());
  EXPECT_FALSE(CheckBlockSizes({.maximum_payload = kMaxPayload + 1}).ok());
}

TEST(BlockSizesTest, ThePreferredSizeIsTheDevices) {
  const auto told = [](const BlockSizes& sizes, uint32_t alignment) {
    return ToldBlockSizes(sizes, {.preferred_alignment = alignment}).preferred;
  };
  EXPECT_EQ(told({}, 1), 4096u);
  EXPECT_EQ(told({}, 512), 4096u);
  EXPECT_EQ(told({}, 65536), 65536u);
  EXPECT_EQ(told({.minimum = 16384}, 4096), 16384u);
  EXPECT_EQ(told({.preferred = 512}, 65536), 512u);
  EXPECT_EQ(told({.maximum_payload = 3 << 20}, 4 << 20), 2u << 20) << "a power of two within the payload";
}

TEST(BlockSizesTest, OnlyTheDefaultConstrainsNobody) {
  EXPECT_FALSE(BlockSizes{}.constraining());
  EXPECT_TRUE((BlockSizes{.minimum = 512}).constraining());
  EXPECT_TRUE((BlockSizes{.maximum_payload = 1 << 20}).constraining());
}

// NBD_CMD_BLOCK_STATUS: "The server SHOULD use descriptor lengths that are an integer multiple of any
// advertised minimum block size".
TEST(BlockSizesTest, ExtentsEndAtBlocks) {
  EXPECT_THAT(Aligned(1, {Data(1), Hole(3)}), ElementsAre(Data(1), Hole(3)));
  EXPECT_THAT(Aligned(4096, {Hole(8192), Data(4096)}), ElementsAre(Hole(8192), Data(4096)));
  EXPECT_THAT(Aligned(4096, {Hole(5000), Data(7288)}), ElementsAre(Hole(4096), Data(8192)));
  EXPECT_THAT(Aligned(4096, {Data(5000), Hole(7288)}), ElementsAre(Data(8192), Hole(4096)));
  EXPECT_THAT(Aligned(4096, {Hole(512), Data(512), Hole(512), Data(512), Hole(6144)}),
              ElementsAre(Data(4096), Hole(4096)));
  // What the device left open at the end is left open.
  EXPECT_THAT(Aligned(4096, {Hole(9000)}), ElementsAre(Hole(8192)));
  EXPECT_THAT(Aligned(4096, {Hole(100)}), ElementsAre(Data(4096)));
}

// Neighbours of which neither is data have data between them afterwards, so that there are more than before.
TEST(BlockSizesTest, ExtentsThatBecomeMoreAreCutAtTheMost) {
  for (const size_t count : {kMaxExtents / 2, kMaxExtents / 2 + 1, kMaxExtents}) {
    std::vector<Extent> extents;
    for (size_t i = 0; i < count; ++i) extents.push_back({i == 0 ? 4096u + 512 : 8192u, i % 2 == 0, true});
    AlignExtents(4096, &extents);
    EXPECT_EQ(extents.size(), std::min(2 * count - 1, kMaxExtents));
    for (size_t i = 0; i < extents.size(); ++i) {
      const Extent expected = {4096, i % 4 != 2, i % 2 == 0};
      EXPECT_EQ(extents[i], expected) << i;
    }
  }
}

}  // namespace
}  // namespace berth::nbd
