#include "image/qcow2/l2_cache.h"

#include <memory>

#include "gtest/gtest.h"

namespace berth::qcow2 {
namespace {

constexpr uint64_t kBytes = 512;

TEST(L2CacheTest, TheOneThatWasNotAskedForTheLongestTimeGoes) {
  L2Cache cache(3 * kBytes, kBytes);
  for (uint64_t i = 1; i <= 3; ++i) cache.Insert({i * kBytes, {i}});
  ASSERT_NE(cache.Find(1 * kBytes), nullptr);
  cache.Insert({4 * kBytes, {4}});
  EXPECT_EQ(cache.size(), 3u);
  EXPECT_EQ(cache.Find(2 * kBytes), nullptr);
  for (const uint64_t i : {1, 3, 4}) {
    const auto slice = cache.Find(i * kBytes);
    ASSERT_NE(slice, nullptr);
    EXPECT_EQ(slice->words[0], i);
  }
}

TEST(L2CacheTest, WhoIsLaterGetsTheOneThatIsThere) {
  L2Cache cache(2 * kBytes, kBytes);
  const auto first = cache.Insert({kBytes, {7}});
  EXPECT_EQ(cache.Insert({kBytes, {8}}), first);
  EXPECT_EQ(cache.Find(kBytes)->words[0], 7u);
  EXPECT_EQ(cache.size(), 1u);
}

TEST(L2CacheTest, ASliceLivesAsLongAsSomebodyHoldsIt) {
  L2Cache cache(0, kBytes);  // Room for one nevertheless.
  const auto held = cache.Insert({kBytes, {7}});
  cache.Insert({2 * kBytes, {8}});
  EXPECT_EQ(cache.size(), 1u);
  EXPECT_EQ(cache.Find(kBytes), nullptr);
  EXPECT_EQ(held->words[0], 7u);
}

}  // namespace
}  // namespace berth::qcow2
