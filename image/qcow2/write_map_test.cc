// The decisions of a map that nobody does anything for: no file, no threads.
#include "image/qcow2/write_map.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"
#include "image/io/task.h"
#include "image/qcow2/format/cluster_entry.h"

namespace berth::qcow2 {
namespace {

using Action = WriteMap::Step::Action;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

// Of the file, clusters 0 to 3 are header and tables, 4 is the L2 table of the disk's beginning, those up to
// kEnd are taken.
constexpr uint64_t kTable = 4;
constexpr uint64_t kEnd = 20;

struct Shape {
  uint32_t cluster_bits = 9;
  uint32_t version = 3;
  bool has_backing = false;
  bool extended = false;
  bool external = false;
  bool gives_space_back = false;
};

EntryLayout Layout(uint32_t cluster_bits) {
  Header header;
  header.cluster_bits = cluster_bits;
  return EntryLayout(header);
}

class WriteMapTest : public testing::Test {
 protected:
  // `words` are the first ones of the L2 table; where there are none, there is no table.
  void Make(const Shape& shape, std::vector<uint64_t> words) {
    bits_ = shape.cluster_bits;
    Header header;
    header.version = shape.version;
    header.cluster_bits = bits_;
    header.size = uint64_t{1} << 30;
    header.l1_size = 8;
    header.l1_table_offset = At(1);
    header.refcount_table_offset = At(2);
    header.refcount_table_clusters = 1;
    if (shape.extended) header.incompatible_features |= kExtendedL2;
    if (shape.external) header.incompatible_features |= kExternalDataFile;
    ClusterAllocator allocator(1000);
    for (uint64_t i = 0; i < kEnd; ++i) allocator.MarkTaken(i);
    std::vector<uint64_t> l1(8);
    if (!words.empty()) l1[0] = At(kTable) | kCopied;
    map_ = std::make_unique<WriteMap>(header, l1, std::move(allocator), std::vector<uint64_t>{0, 1, 2, 3},
                                      shape.has_backing, shape.gives_space_back, /*cache_bytes=*/0);
    if (words.empty()) return;
    words.resize(map_->slice_bytes() / 8);
    map_->AddSlice(At(kTable), std::move(words));
  }

  uint64_t At(uint64_t cluster) const { return cluster << bits_; }

  // Plans a write that has to allocate, and ends it.
  void WriteNew(uint64_t offset, uint64_t length) {
    const WriteMap::Step step = map_->PlanWrite(offset, length);
    ASSERT_EQ(step.action, Action::kAllocate);
    map_->Finish(step.allocation, true);
  }

  // As a commit that finds no other references.
  WriteMap::Batch Commit() {
    WriteMap::Batch batch = map_->TakeBatch();
    map_->Committed(batch.epoch, batch.released);
    return batch;
  }

  uint32_t bits_ = 9;
  std::unique_ptr<WriteMap> map_;
};

TEST_F(WriteMapTest, AFirstWriteTakesATableAndARowOfClusters) {
  Make({}, {});
  const WriteMap::Step step = map_->PlanWrite(At(3) + 10, 600);
  ASSERT_EQ(step.action, Action::kAllocate);
  EXPECT_EQ(step.length, 600u);
  EXPECT_EQ(step.allocation->guest, 3u);
  EXPECT_EQ(step.allocation->count, 2u);
  EXPECT_EQ(step.allocation->host, kEnd + 1);
  EXPECT_EQ(step.allocation->fill_begin, At(3));
  EXPECT_EQ(step.allocation->fill_end, At(5));
  EXPECT_EQ(map_->Find(At(3), 1024).run.kind, RunKind::kUnallocated) << "it is not written yet";
  map_->Finish(step.allocation, true);
  const WriteMap::Step found = map_->Find(At(3) + 10, 5000);
  EXPECT_EQ(found.run.kind, RunKind::kData);
  EXPECT_EQ(found.run.host, At(kEnd + 1) + 10);
  EXPECT_EQ(found.run.length, 1024u - 10);
  const WriteMap::Batch batch = map_->TakeBatch();
  EXPECT_THAT(batch.taken, UnorderedElementsAre(kEnd, kEnd + 1, kEnd + 2));
  EXPECT_THAT(batch.l1, ElementsAre(Pair(0, At(kEnd) | kCopied)));
  ASSERT_EQ(batch.new_tables.size(), 1u);
  EXPECT_THAT(batch.slices, IsEmpty()) << "nothing leads to the table yet";
  EXPECT_EQ(batch.new_tables[0].file_offset, At(kEnd));
  EXPECT_EQ(batch.new_tables[0].words[3], At(kEnd + 1) | kCopied);
  EXPECT_EQ(batch.new_tables[0].words[4], At(kEnd + 2) | kCopied);
  // The next change is of a table that is in use.
  WriteNew(At(9), 512);
  const WriteMap::Batch next = map_->TakeBatch();
  EXPECT_EQ(next.slices.size(), 1u);
  EXPECT_THAT(next.new_tables, IsEmpty());
  EXPECT_THAT(next.l1, IsEmpty());
}

TEST_F(WriteMapTest, WhatCouldNotBeWrittenIsGivenBack) {
  Make({}, {0});
  WriteMap::Step step = map_->PlanWrite(0, 1024);
  map_->Finish(step.allocation, false);
  EXPECT_EQ(map_->Find(0, 512).run.kind, RunKind::kUnallocated);
  EXPECT_THAT(map_->TakeBatch().taken, IsEmpty());
  // Where a commit has counted it already, the next one takes that back.
  step = map_->PlanWrite(0, 512);
  const uint64_t host = step.allocation->host;
  EXPECT_THAT(map_->TakeBatch().taken, ElementsAre(host));
  map_->Finish(step.allocation, false);
  EXPECT_THAT(map_->TakeBatch().released, ElementsAre(host));
}

TEST_F(WriteMapTest, OwnDataIsOverwrittenInPlaceAsFarAsItLiesInARow) {
  Make({}, {At(10) | kCopied, At(11) | kCopied, At(13) | kCopied});
  WriteMap::Step step = map_->PlanWrite(100, 2000);
  ASSERT_EQ(step.action, Action::kRun);
  EXPECT_EQ(step.run.host, At(10) + 100);
  EXPECT_EQ(step.length, 1024u - 100);
  step = map_->PlanWrite(At(2), 2000);
  ASSERT_EQ(step.action, Action::kRun);
  EXPECT_EQ(step.length, 512u);
  EXPECT_THAT(map_->TakeBatch().slices, IsEmpty()) << "nothing changed";
}

TEST_F(WriteMapTest, SharedDataIsCopiedAndReleased) {
  Make({}, {At(10), At(11) | kCopied});
  const WriteMap::Step step = map_->PlanWrite(0, 1024);
  ASSERT_EQ(step.action, Action::kAllocate);
  EXPECT_EQ(step.length, 512u) << "the next one is its own";
  EXPECT_FALSE(step.allocation->reused);
  map_->Finish(step.allocation, true);
  const WriteMap::Batch batch = map_->TakeBatch();
  EXPECT_THAT(batch.released, ElementsAre(10));
  ASSERT_EQ(batch.slices.size(), 1u);
  EXPECT_EQ(batch.slices[0].words[0], At(kEnd) | kCopied);
  EXPECT_EQ(batch.slices[0].words[1], At(11) | kCopied);
}

TEST_F(WriteMapTest, ASharedRunBehindOwnDataIsNotOverwritten) {
  Make({}, {At(10) | kCopied, At(11)});
  const WriteMap::Step step = map_->PlanWrite(0, 1024);
  ASSERT_EQ(step.action, Action::kRun);
  EXPECT_EQ(step.length, 512u);
}

TEST_F(WriteMapTest, TheClusterBehindZeroesIsUsed) {
  Make({}, {At(10) | kCopied | kReadsAsZero, At(11) | kCopied | kReadsAsZero});
  const WriteMap::Step step = map_->PlanWrite(50, 1000);
  ASSERT_EQ(step.action, Action::kAllocate);
  EXPECT_TRUE(step.allocation->reused);
  EXPECT_EQ(step.allocation->host, 10u);
  EXPECT_EQ(step.length, 512u - 50);
  map_->Finish(step.allocation, true);
  const WriteMap::Batch batch = map_->TakeBatch();
  EXPECT_EQ(batch.slices.at(0).words[0], At(10) | kCopied);
  EXPECT_THAT(batch.taken, IsEmpty());
  EXPECT_THAT(batch.released, IsEmpty());
}

TEST_F(WriteMapTest, ASharedTableIsCopiedWhole) {
  Make({}, {});
  Header header;
  header.cluster_bits = 9;
  header.l1_table_offset = At(1);
  header.refcount_table_offset = At(2);
  header.refcount_table_clusters = 1;
  ClusterAllocator allocator(1000);
  for (uint64_t i = 0; i < kEnd; ++i) allocator.MarkTaken(i);
  WriteMap map(header, {At(kTable)}, std::move(allocator), {0, 1, 2, 3}, false, false, 0);
  WriteMap::Step step = map.PlanWrite(0, 512);
  ASSERT_EQ(step.action, Action::kLoad);
  EXPECT_EQ(step.file_offset, At(kTable));
  std::vector<uint64_t> words(64);
  words[7] = At(15);
  words[9] = At(kEnd) | kCopied;
  map.AddSlice(At(kTable), words);
  step = map.PlanWrite(0, 512);
  ASSERT_EQ(step.action, Action::kAllocate);
  map.Finish(step.allocation, true);
  EXPECT_EQ(map.PlanWrite(At(9), 512).action, Action::kFailed) << "that is the new table";
  const WriteMap::Batch batch = map.TakeBatch();
  ASSERT_EQ(batch.new_tables.size(), 1u);
  EXPECT_EQ(batch.new_tables[0].words[7], At(15));
  EXPECT_THAT(batch.released, ElementsAre(kTable));
  EXPECT_THAT(batch.l1, ElementsAre(Pair(0, At(kEnd) | kCopied)));
}

TEST_F(WriteMapTest, BrokenEntriesOverwriteNothing) {
  // Over the header's tables, over an L2 table, in a free cluster, and with reserved bits.
  Make({}, {At(2) | kCopied, At(kTable) | kCopied, At(500) | kCopied, At(10) | kCopied | 2,
            At(3) | kCopied | kReadsAsZero, At(3)});
  for (uint64_t cluster = 0; cluster < 5; ++cluster) {
    EXPECT_EQ(map_->PlanWrite(At(cluster), 512).action, Action::kFailed) << cluster;
  }
  WriteNew(At(5), 512);
  EXPECT_THAT(map_->TakeBatch().released, IsEmpty()) << "a table is not released";
}

TEST_F(WriteMapTest, WhoComesToTheSameClusterWaits) {
  Make({}, {0});
  const WriteMap::Step first = map_->PlanWrite(At(1), 1024);
  const WriteMap::Step second = map_->PlanWrite(At(2) + 100, 10);
  ASSERT_EQ(second.action, Action::kWait);
  EXPECT_EQ(map_->PlanClear(At(2), 512, false).action, Action::kWait);
  WriteMap::Step beside = map_->PlanWrite(0, 1536);
  ASSERT_EQ(beside.action, Action::kAllocate);
  EXPECT_EQ(beside.length, 512u) << "up to what is being written";
  map_->Finish(beside.allocation, true);
  EXPECT_EQ(map_->PlanClear(At(3), 512, false).action, Action::kDone);

  auto pool = ReactorPool::Create(1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  Reactor& reactor = (*pool)->at(0);
  bool went_on = false;
  const auto run = [&]() -> Task<void> {
    Gate gate(reactor);
    const auto wait = [](WriteMap* map, Reactor* where, WriteMap::Step step, bool* out,
                         Gate::Holder) -> Task<void> {
      auto waiting = map->WaitFor(*where, step.wait_offset, step.length);
      co_await waiting;
      *out = true;
    };
    Spawn(wait(map_.get(), &reactor, second, &went_on, gate.Enter()));
    co_await reactor.Yield();
    EXPECT_FALSE(went_on);
    map_->Finish(first.allocation, true);
    co_await gate.Close();
    // Nothing is in the way any more.
    auto again = map_->WaitFor(reactor, At(2), 1);
    co_await again;
  };
  RunOn(reactor, run);
  EXPECT_TRUE(went_on);
  EXPECT_EQ(map_->PlanWrite(At(2) + 100, 10).action, Action::kRun);
}

TEST_F(WriteMapTest, ClearedClustersAreReleased) {
  const uint64_t compressed = EncodeCompressed(Layout(9), At(14) + 400, 300);
  Make({}, {At(10) | kCopied, At(11) | kCopied | kReadsAsZero, compressed, 0});
  const WriteMap::Step step = map_->PlanClear(0, At(4), false);
  EXPECT_EQ(step.action, Action::kDone);
  EXPECT_EQ(step.length, At(4));
  const WriteMap::Batch batch = map_->TakeBatch();
  EXPECT_THAT(batch.released, UnorderedElementsAre(10, 11, 14, 15));
  EXPECT_EQ(map_->Find(0, At(4)).run.kind, RunKind::kUnallocated);
  EXPECT_EQ(map_->Find(0, At(4)).run.length, At(4));
}

TEST_F(WriteMapTest, NothingShinesThroughFromBelow) {
  Make({.has_backing = true}, {At(10) | kCopied, 0, 0});
  EXPECT_EQ(map_->PlanClear(0, At(2), /*discard=*/true).action, Action::kDone);
  EXPECT_EQ(map_->Find(0, 1).run.kind, RunKind::kZero);
  EXPECT_EQ(map_->Find(At(1), 1).run.kind, RunKind::kUnallocated) << "as before";
  EXPECT_EQ(map_->PlanClear(At(1), At(1), /*discard=*/false).action, Action::kDone);
  EXPECT_EQ(map_->Find(At(1), 1).run.kind, RunKind::kZero);
  // Version 2 has no way to say so.
  Make({.version = 2, .has_backing = true}, {At(10) | kCopied});
  EXPECT_EQ(map_->PlanClear(0, 512, /*discard=*/false).action, Action::kByWriting);
  EXPECT_EQ(map_->PlanClear(0, 512, /*discard=*/true).action, Action::kDone);
  EXPECT_EQ(map_->Find(0, 1).run.kind, RunKind::kData);
}

TEST_F(WriteMapTest, AClusterIsUsedAgainWhenNobodyReadsItAnyMore) {
  Make({}, {At(10) | kCopied});
  WriteMap::Step reader = map_->Find(0, 512);
  ASSERT_EQ(map_->PlanClear(0, 512, true).action, Action::kDone);
  Commit();
  WriteMap::Step write = map_->PlanWrite(At(5), 512);
  EXPECT_EQ(write.allocation->host, kEnd) << "somebody reads cluster 10";
  map_->Finish(write.allocation, true);
  reader = {};
  write = {};  // It has an epoch too.
  Commit();
  WriteNew(At(6), 512);
  EXPECT_THAT(map_->TakeBatch().taken, ElementsAre(10));
}

TEST_F(WriteMapTest, SpaceIsGivenBackBeforeItIsUsedAgain) {
  Make({.gives_space_back = true}, {At(10) | kCopied});
  ASSERT_EQ(map_->PlanClear(0, 512, true).action, Action::kDone);
  EXPECT_THAT(Commit().unused, IsEmpty());
  const WriteMap::Batch batch = Commit();
  EXPECT_THAT(batch.unused, ElementsAre(10));
  WriteNew(At(5), 512);
  EXPECT_THAT(map_->TakeBatch().taken, ElementsAre(kEnd));
  map_->Free(batch.unused);
  WriteNew(At(6), 512);
  // Behind the last allocation first, then around.
  EXPECT_THAT(map_->TakeBatch().taken, ElementsAre(10));
}

TEST_F(WriteMapTest, SlicesThatWaitToBeWrittenStay) {
  Make({}, {At(10) | kCopied});
  WriteNew(At(1), 512);  // Its slice waits.
  for (uint64_t i = 0; i < 100; ++i) map_->AddSlice(At(1000 + i), std::vector<uint64_t>(64));
  EXPECT_EQ(map_->Find(At(1), 1).action, Action::kRun);
  EXPECT_FALSE(map_->NeedsCommit());
  Commit();
  for (uint64_t i = 0; i < 100; ++i) map_->AddSlice(At(2000 + i), std::vector<uint64_t>(64));
  const WriteMap::Step gone = map_->Find(At(1), 1);
  ASSERT_EQ(gone.action, Action::kLoad);
  EXPECT_EQ(gone.file_offset, At(kTable));
  // One that an allocation will change stays as well, and a slice that is there is not replaced.
  std::vector<uint64_t> words(64);
  words[1] = At(12) | kCopied;
  map_->AddSlice(At(kTable), words);
  const WriteMap::Step step = map_->PlanWrite(At(2), 512);
  ASSERT_EQ(step.action, Action::kAllocate);
  for (uint64_t i = 0; i < 100; ++i) map_->AddSlice(At(3000 + i), std::vector<uint64_t>(64));
  map_->AddSlice(At(kTable), std::vector<uint64_t>(64));
  EXPECT_EQ(map_->Find(At(1), 1).run.host, At(12));
  map_->Finish(step.allocation, true);
}

TEST_F(WriteMapTest, ManyChangesAskForACommit) {
  Make({}, {0});
  // A table each; the cache has 66 slices.
  for (uint64_t i = 1; i < 8; ++i) WriteNew(i << 15, 512);
  EXPECT_FALSE(map_->NeedsCommit());
  Make({.cluster_bits = 16}, {0});
  for (uint64_t i = 1; i < 5; ++i) WriteNew(i << 29, 512);
  EXPECT_TRUE(map_->NeedsCommit());
  Commit();
  EXPECT_FALSE(map_->NeedsCommit());
}

TEST_F(WriteMapTest, AfterAFailureNothingChanges) {
  Make({}, {At(10) | kCopied});
  map_->Fail();
  EXPECT_EQ(map_->PlanWrite(0, 512).action, Action::kFailed);
  EXPECT_EQ(map_->PlanClear(0, 512, false).action, Action::kFailed);
  EXPECT_EQ(map_->Find(0, 512).run.host, At(10));
}

TEST_F(WriteMapTest, ACommitsTablesAreMetadata) {
  Make({}, {0, At(kEnd) | kCopied});
  EXPECT_EQ(map_->TakeMetadata(2), kEnd);
  EXPECT_EQ(map_->end_cluster(), kEnd + 2);
  EXPECT_EQ(map_->PlanWrite(At(1), 512).action, Action::kFailed);
  map_->GiveBackMetadata(kEnd, 2);
  EXPECT_EQ(map_->PlanWrite(At(1), 512).action, Action::kRun);
  EXPECT_THAT(map_->TakeBatch().released, ElementsAre(kEnd, kEnd + 1));
}

// Subclusters: 512 bytes, 32 of them in a cluster of 16 KiB.
constexpr Shape kExtended = {.cluster_bits = 14, .extended = true};
constexpr Shape kExtendedOverlay = {.cluster_bits = 14, .has_backing = true, .extended = true};
constexpr uint64_t Zeroes(uint64_t units) { return units << 32; }

class SubclusterTest : public WriteMapTest {
 protected:
  SubclusterTest() { bits_ = kExtended.cluster_bits; }

  // The words of cluster 0.
  std::pair<uint64_t, uint64_t> Words() {
    const WriteMap::Batch batch = map_->TakeBatch();
    taken_ = batch.taken;
    released_ = batch.released;
    if (batch.slices.empty()) return {};
    return {batch.slices[0].words[0], batch.slices[0].words[1]};
  }

  std::vector<uint64_t> taken_;
  std::vector<uint64_t> released_;
};

TEST_F(SubclusterTest, OnlyWhatARequestTouchesIsFilled) {
  Make(kExtendedOverlay, {0, Zeroes(0x13)});
  const WriteMap::Step step = map_->PlanWrite(700, 900);
  ASSERT_EQ(step.action, Action::kAllocate);
  EXPECT_EQ(step.length, 900u);
  EXPECT_EQ(step.allocation->fill_begin, 512u);
  EXPECT_EQ(step.allocation->fill_end, 2048u);
  map_->Finish(step.allocation, true);
  EXPECT_EQ(map_->Find(0, 512).run.kind, RunKind::kZero);
  EXPECT_EQ(map_->Find(512, 4096).run.kind, RunKind::kData);
  EXPECT_EQ(map_->Find(512, 4096).run.length, 1536u);
  EXPECT_EQ(map_->Find(4096, 512).run.kind, RunKind::kUnallocated);
  EXPECT_EQ(Words(), std::pair(At(kEnd) | kCopied, Zeroes(0x11) | 0xe));
}

TEST_F(SubclusterTest, DifferentOnesOfAClusterAreFilledAtTheSameTime) {
  Make(kExtended, {At(10) | kCopied, 0x3});
  const WriteMap::Step one = map_->PlanWrite(2048, 512);
  ASSERT_EQ(one.action, Action::kAllocate);
  EXPECT_TRUE(one.allocation->reused);
  EXPECT_EQ(one.allocation->host, 10u);
  const WriteMap::Step two = map_->PlanWrite(1024, 4096);
  ASSERT_EQ(two.action, Action::kAllocate);
  EXPECT_EQ(two.allocation->fill_end, 2048u) << "up to what is being filled";
  EXPECT_EQ(map_->PlanWrite(2100, 10).action, Action::kWait);
  EXPECT_EQ(map_->PlanWrite(512, 100).action, Action::kRun) << "that is there";
  const WriteMap::Step clear = map_->PlanClear(0, 512, false);
  ASSERT_EQ(clear.action, Action::kWait) << "it might free the cluster";
  EXPECT_EQ(clear.wait_offset, 0u);
  EXPECT_EQ(clear.length, At(1));
  map_->Finish(one.allocation, true);
  map_->Finish(two.allocation, true);
  EXPECT_EQ(Words(), std::pair(At(10) | kCopied, uint64_t{0x1f}));
  EXPECT_THAT(taken_, IsEmpty());
  EXPECT_THAT(released_, IsEmpty());
}

TEST_F(SubclusterTest, FillingEndsWhereDataIs) {
  Make(kExtended, {At(10) | kCopied, 0x10});
  const WriteMap::Step step = map_->PlanWrite(512, 8192);
  ASSERT_EQ(step.action, Action::kAllocate);
  EXPECT_EQ(step.length, 1536u);
  map_->Finish(step.allocation, true);
  EXPECT_EQ(map_->PlanWrite(0, 512).action, Action::kAllocate);
}

TEST_F(SubclusterTest, OfASharedClusterTheDataIsCopied) {
  Make(kExtendedOverlay, {At(10), 0x90 | Zeroes(0x80000000)});
  const WriteMap::Step step = map_->PlanWrite(512 * 5, 512);
  ASSERT_EQ(step.action, Action::kAllocate);
  EXPECT_EQ(step.length, 512u);
  EXPECT_EQ(step.allocation->fill_begin, 512u * 4);
  EXPECT_EQ(step.allocation->fill_end, 512u * 8);
  map_->Finish(step.allocation, true);
  EXPECT_EQ(Words(), std::pair(At(kEnd) | kCopied, 0xf0 | Zeroes(0x80000000)));
  EXPECT_THAT(released_, ElementsAre(10));
}

TEST_F(SubclusterTest, OfACompressedClusterAllIsCopied) {
  const uint64_t compressed = EncodeCompressed(Layout(14), At(12), 300);
  Make(kExtended, {compressed, 0});
  EXPECT_EQ(map_->PlanClear(512, 512, false).action, Action::kByWriting);
  EXPECT_EQ(map_->PlanClear(512, 512, true).action, Action::kDone);
  const WriteMap::Step step = map_->PlanWrite(512, 512);
  ASSERT_EQ(step.action, Action::kAllocate);
  EXPECT_EQ(step.allocation->fill_begin, 0u);
  EXPECT_EQ(step.allocation->fill_end, At(1));
  map_->Finish(step.allocation, true);
  EXPECT_EQ(Words(), std::pair(At(kEnd) | kCopied, uint64_t{0xffffffff}));
  EXPECT_THAT(released_, ElementsAre(12));
}

TEST_F(SubclusterTest, AClusterIsFreedWithTheLastOfItsData) {
  Make(kExtendedOverlay, {At(10) | kCopied, 0x6});
  EXPECT_EQ(map_->PlanClear(512, 512, false).action, Action::kDone);
  EXPECT_EQ(Words(), std::pair(At(10) | kCopied, 0x4 | Zeroes(0x2)));
  EXPECT_THAT(released_, IsEmpty());
  EXPECT_EQ(map_->PlanClear(512, 2048, true).action, Action::kDone);
  // What was not there is not made zero by a discard.
  EXPECT_EQ(Words(), std::pair(uint64_t{0}, Zeroes(0x6)));
  EXPECT_THAT(released_, ElementsAre(10));
  EXPECT_EQ(map_->PlanClear(0, At(1), false).action, Action::kDone);
  EXPECT_EQ(Words(), std::pair(uint64_t{0}, Zeroes(0xffffffff)));
}

TEST_F(SubclusterTest, WithNothingBelowClearedOnesAreInNoBitmap) {
  Make(kExtended, {At(10) | kCopied, 0x6 | Zeroes(0x30)});
  EXPECT_EQ(map_->PlanClear(1024, 1536, false).action, Action::kDone);
  EXPECT_EQ(Words(), std::pair(At(10) | kCopied, 0x2 | Zeroes(0x20)));
}

TEST_F(SubclusterTest, SpaceSetAsideGoesWithARequestForAllOfItOnly) {
  Make(kExtended, {At(10) | kCopied, 0});
  EXPECT_EQ(map_->PlanClear(0, At(1) - 512, false).action, Action::kDone);
  EXPECT_EQ(Words(), std::pair(uint64_t{0}, uint64_t{0})) << "nothing changed";
  EXPECT_EQ(map_->PlanClear(0, At(1), false).action, Action::kDone);
  EXPECT_EQ(Words(), std::pair(uint64_t{0}, uint64_t{0}));
  EXPECT_THAT(released_, ElementsAre(10));
}

TEST_F(WriteMapTest, AnExternalDataFileHasAPlaceForEverything) {
  Make({.external = true}, {0, 0, At(2) | kCopied});
  WriteMap::Step step = map_->PlanWrite(0, At(4));
  ASSERT_EQ(step.action, Action::kAllocate);
  EXPECT_EQ(step.length, At(2));
  EXPECT_EQ(step.allocation->host, 0u);
  map_->Finish(step.allocation, true);
  EXPECT_EQ(map_->Find(0, At(3)).run.host, 0u);
  EXPECT_EQ(map_->Find(0, At(3)).run.length, At(3));
  step = map_->PlanWrite(100, At(2));
  EXPECT_EQ(step.action, Action::kRun);
  EXPECT_EQ(step.run.host, 100u);
  EXPECT_EQ(map_->PlanClear(0, At(2), false).action, Action::kDone);
  const WriteMap::Batch batch = map_->TakeBatch();
  EXPECT_THAT(batch.taken, IsEmpty());
  EXPECT_THAT(batch.released, IsEmpty());
  EXPECT_EQ(batch.slices.at(0).words[0], 0u);
  // One that cannot be written is simply not there.
  step = map_->PlanWrite(0, 512);
  map_->Finish(step.allocation, false);
  EXPECT_THAT(map_->TakeBatch().released, IsEmpty());
  EXPECT_EQ(map_->Find(0, 1).run.kind, RunKind::kUnallocated);
}

}  // namespace
}  // namespace berth::qcow2
