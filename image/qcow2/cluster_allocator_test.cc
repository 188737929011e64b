#include "image/qcow2/cluster_allocator.h"

#include <string>

#include "gtest/gtest.h"

namespace berth::qcow2 {
namespace {

using Range = ClusterAllocator::Range;

// What is taken, as "##..#": a character a cluster.
ClusterAllocator Taken(const std::string& clusters, uint64_t limit = 1000) {
  ClusterAllocator allocator(limit);
  for (size_t i = 0; i < clusters.size(); ++i) {
    if (clusters[i] == '#') allocator.MarkTaken(i);
  }
  return allocator;
}

TEST(ClusterAllocatorTest, CountsWhatIsTakenOnce) {
  ClusterAllocator allocator = Taken("#.#");
  allocator.MarkTaken(2);
  EXPECT_EQ(allocator.taken(), 2u);
  EXPECT_EQ(allocator.end(), 3u);
  EXPECT_TRUE(allocator.IsTaken(0));
  EXPECT_FALSE(allocator.IsTaken(1));
  EXPECT_FALSE(allocator.IsTaken(700)) << "behind the end nothing is";
}

TEST(ClusterAllocatorTest, HolesGoBeforeTheEndAndGiveWhatTheyHave) {
  ClusterAllocator allocator = Taken("##..#.#");
  Range range = allocator.Allocate(5);
  EXPECT_EQ(range.first, 2u);
  EXPECT_EQ(range.count, 2u);
  range = allocator.Allocate(5);
  EXPECT_EQ(range.first, 5u);
  EXPECT_EQ(range.count, 1u);
  range = allocator.Allocate(5);
  EXPECT_EQ(range.first, 7u);
  EXPECT_EQ(range.count, 5u);
  EXPECT_EQ(allocator.end(), 12u);
  EXPECT_EQ(allocator.taken(), 12u);
}

TEST(ClusterAllocatorTest, GoesOnBehindTheLastAndAroundAtTheEnd) {
  ClusterAllocator allocator = Taken("#.#.#.#");
  EXPECT_EQ(allocator.Allocate(1).first, 1u);
  allocator.Free(1);
  EXPECT_EQ(allocator.Allocate(1).first, 3u) << "not what was freed just now";
  EXPECT_EQ(allocator.Allocate(1).first, 5u);
  EXPECT_EQ(allocator.Allocate(1).first, 1u);
}

TEST(ClusterAllocatorTest, HolesAreFoundBeyondAWordOfBits) {
  ClusterAllocator allocator = Taken(std::string(130, '#') + "." + std::string(80, '#'));
  const Range range = allocator.Allocate(2);
  EXPECT_EQ(range.first, 130u);
  EXPECT_EQ(range.count, 1u);
}

TEST(ClusterAllocatorTest, NothingIsGivenFromTheLimitOn) {
  ClusterAllocator allocator = Taken("###", 5);
  EXPECT_EQ(allocator.AllocateWhole(3).count, 0u);
  const Range range = allocator.Allocate(3);
  EXPECT_EQ(range.first, 3u);
  EXPECT_EQ(range.count, 2u);
  EXPECT_EQ(allocator.Allocate(1).count, 0u);
}

TEST(ClusterAllocatorTest, AWholeRowIsTakenWhereItFits) {
  ClusterAllocator allocator = Taken("#.#..#...#");
  EXPECT_EQ(allocator.AllocateWhole(3).first, 6u);
  EXPECT_EQ(allocator.AllocateWhole(3).first, 10u);
  EXPECT_EQ(allocator.AllocateWhole(2).first, 3u);
}

}  // namespace
}  // namespace berth::qcow2
