#include "image/raw/extent_cache.h"

#include <vector>

#include "gtest/gtest.h"

namespace berth {
namespace {

using Extents = std::vector<Extent>;

Extent Data(uint64_t length) { return {length, true, false}; }
Extent Hole(uint64_t length) { return {length, false, true}; }

class ExtentCacheTest : public testing::Test {
 protected:
  void Remember(uint64_t offset, const Extents& extents) {
    const ExtentCache::Look look(&cache_);
    cache_.Remember(look, offset, extents);
  }
  Extents Find(uint64_t offset, uint64_t length) {
    Extents found;
    uint64_t sum = 0;
    const uint64_t covered = cache_.Find(offset, length, &found);
    for (const Extent& extent : found) sum += extent.length;
    EXPECT_EQ(sum, covered);
    return found;
  }
  ExtentCache cache_;
};

TEST_F(ExtentCacheTest, FindsUpToTheFirstGap) {
  EXPECT_EQ(Find(0, 100), Extents{});
  Remember(100, {Hole(100), Data(50), Hole(50)});
  Remember(400, {Data(100)});
  EXPECT_EQ(Find(0, 500), Extents{});
  EXPECT_EQ(Find(100, 500), (Extents{Hole(100), Data(50), Hole(50)}));
  EXPECT_EQ(Find(150, 75), (Extents{Hole(50), Data(25)}));
  EXPECT_EQ(Find(400, 1), Extents{Data(1)});
  EXPECT_EQ(Find(499, 5), Extents{Data(1)});
  EXPECT_EQ(Find(500, 5), Extents{});
}

TEST_F(ExtentCacheTest, NeighboursOfAKindAreOne) {
  Remember(0, {Hole(100)});
  Remember(100, {Hole(100)});
  EXPECT_EQ(Find(50, 150), Extents{Hole(150)});
}

TEST_F(ExtentCacheTest, AWriteTakesHolesAway) {
  Remember(0, {Hole(100), Data(100), Hole(100)});
  cache_.Written(40, 20);
  EXPECT_EQ(Find(0, 300), Extents{Hole(40)});
  EXPECT_EQ(Find(40, 20), Extents{});
  EXPECT_EQ(Find(60, 240), (Extents{Hole(40), Data(100), Hole(100)}));
  cache_.Written(120, 30);  // Data stays data.
  EXPECT_EQ(Find(100, 100), Extents{Data(100)});
}

// Space that was set aside reads as zeroes like a hole, until something is written to it.
TEST_F(ExtentCacheTest, SpaceThatReadsAsZeroes) {
  const Extent space = {100, true, true};
  Remember(0, {Hole(100), space, Data(100)});
  EXPECT_EQ(Find(0, 300), (Extents{Hole(100), space, Data(100)}));
  cache_.Written(150, 10);
  EXPECT_EQ(Find(100, 100), (Extents{{50, true, true}}));
  EXPECT_EQ(Find(160, 140), (Extents{{40, true, true}, Data(100)}));
}

TEST_F(ExtentCacheTest, AChangeTakesEverythingAway) {
  Remember(0, {Hole(100), Data(100)});
  cache_.Changed(50, 100);
  EXPECT_EQ(Find(0, 200), Extents{Hole(50)});
  EXPECT_EQ(Find(150, 50), Extents{Data(50)});
  cache_.Clear();
  EXPECT_EQ(Find(150, 50), Extents{});
}

TEST_F(ExtentCacheTest, WhatWasSeenDuringAChangeIsNotRemembered) {
  for (int change = 0; change < 3; ++change) {
    const ExtentCache::Look look(&cache_);
    if (change == 0) cache_.Written(5, 1);
    if (change == 1) cache_.Changed(5, 1);
    if (change == 2) cache_.Clear();
    cache_.Remember(look, 0, {Hole(10)});
    EXPECT_EQ(Find(0, 10), Extents{}) << change;
  }
}

TEST_F(ExtentCacheTest, IsBounded) {
  for (uint64_t i = 0; i < 3 * ExtentCache::kMostPieces; ++i) Remember(i * 10, {Data(1)});
  size_t known = 0;
  for (uint64_t i = 0; i < 3 * ExtentCache::kMostPieces; ++i) known += Find(i * 10, 1).size();
  EXPECT_LE(known, ExtentCache::kMostPieces);
  EXPECT_GT(known, 0u);
}

}  // namespace
}  // namespace berth
