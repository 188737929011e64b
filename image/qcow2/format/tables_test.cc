// Refcount blocks, L1 and L2 entries, the snapshot table, the bitmap directory.
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/big_endian.h"
#include "image/qcow2/format/bitmap_directory.h"
#include "image/qcow2/format/cluster_entry.h"
#include "image/qcow2/format/refcount_block.h"
#include "image/qcow2/format/snapshot_table.h"

namespace berth::qcow2 {
namespace {

using testing::HasSubstr;

constexpr uint64_t kCluster = 65'536;

TEST(RefcountBlockTest, EveryOrderKeepsItsNeighbours) {
  for (uint32_t order = 0; order <= kMaxRefcountOrder; ++order) {
    std::vector<uint8_t> block(512);
    const size_t entries = RefcountEntries(block.size(), order);
    EXPECT_EQ(entries, 4096u >> order);
    std::vector<uint64_t> expected(entries);
    std::mt19937_64 random(order);
    for (int i = 0; i < 5000; ++i) {
      const size_t index = random() % entries;
      expected[index] = random() & MaxRefcount(order);
      SetRefcount(absl::MakeSpan(block), order, index, expected[index]);
    }
    for (size_t i = 0; i < entries; ++i) {
      ASSERT_EQ(GetRefcount(block, order, i), expected[i]) << "order " << order << ", entry " << i;
    }
  }
}

TEST(RefcountBlockTest, IsLaidOutAsSpecified) {
  std::vector<uint8_t> block(512);
  SetRefcount(absl::MakeSpan(block), 0, 1, 1);
  EXPECT_EQ(block[0], 2);
  SetRefcount(absl::MakeSpan(block), 2, 3, 0xa);
  EXPECT_EQ(block[1], 0xa0);
  SetRefcount(absl::MakeSpan(block), 4, 5, 0x1234);
  EXPECT_EQ(block[10], 0x12);
  EXPECT_EQ(block[11], 0x34);
}

Header Layout(uint32_t version, uint32_t cluster_bits, uint64_t features) {
  Header header;
  header.version = version;
  header.cluster_bits = cluster_bits;
  header.incompatible_features = features;
  return header;
}

UnitMapping Decode(const Header& header, uint64_t descriptor, uint64_t subclusters = 0, uint32_t unit = 0,
                   uint64_t guest = 0) {
  return DecodeUnit(EntryLayout(header), descriptor, subclusters, unit, guest);
}

TEST(ClusterEntryTest, L1Entries) {
  const EntryLayout layout(Layout(3, 16, 0));
  EXPECT_EQ(L2TableOffset(layout, 0), 0u);
  EXPECT_EQ(L2TableOffset(layout, kCopied | 3 * kCluster), 3 * kCluster);
  EXPECT_EQ(L2TableOffset(layout, 3 * kCluster + 512), std::nullopt);
  EXPECT_EQ(L2TableOffset(layout, 3 * kCluster | 1), std::nullopt);
  EXPECT_EQ(L2TableOffset(layout, 3 * kCluster | uint64_t{1} << 56), std::nullopt);
}

TEST(ClusterEntryTest, StandardEntries) {
  const Header header = Layout(3, 16, 0);
  EXPECT_EQ(Decode(header, 0).kind, RunKind::kUnallocated);
  EXPECT_EQ(Decode(header, kReadsAsZero).kind, RunKind::kZero);
  EXPECT_FALSE(Decode(header, kReadsAsZero).has_space);
  EXPECT_EQ(Decode(header, kCopied | kCluster | kReadsAsZero).kind, RunKind::kZero);
  EXPECT_TRUE(Decode(header, kCopied | kCluster | kReadsAsZero).has_space);
  EXPECT_EQ(Decode(header, kCluster).kind, RunKind::kData);
  EXPECT_EQ(Decode(header, kCopied | kCluster).host, kCluster);
  for (const uint64_t bad : {uint64_t{2}, kCluster | 256, kCluster | uint64_t{1} << 56,
                             kCluster | uint64_t{1} << 61, kCluster + 512, kCopied}) {
    EXPECT_EQ(Decode(header, bad).kind, RunKind::kInvalid) << bad;
  }
  EXPECT_EQ(Decode(Layout(2, 16, 0), kReadsAsZero).kind, RunKind::kInvalid);
}

TEST(ClusterEntryTest, ExternalDataLiesWhereTheGuestSeesIt) {
  const Header header = Layout(3, 16, kExternalDataFile);
  EXPECT_EQ(Decode(header, kCopied).kind, RunKind::kData);
  EXPECT_EQ(Decode(header, 0).kind, RunKind::kUnallocated);
  EXPECT_EQ(Decode(header, kCopied | kCluster, 0, 0, kCluster).host, kCluster);
  EXPECT_EQ(Decode(header, kCopied | kCluster, 0, 0, 2 * kCluster).kind, RunKind::kInvalid);
  EXPECT_EQ(Decode(header, kCompressed | kCluster).kind, RunKind::kInvalid);
}

TEST(ClusterEntryTest, Subclusters) {
  const Header header = Layout(3, 16, kExtendedL2);
  const uint64_t bitmap = uint64_t{1} << 31 | uint64_t{1} << 32;  // The last has data, the first is zero.
  EXPECT_EQ(Decode(header, kCluster, bitmap, 0).kind, RunKind::kZero);
  EXPECT_TRUE(Decode(header, kCluster, bitmap, 0).has_space);
  EXPECT_EQ(Decode(header, kCluster, bitmap, 1).kind, RunKind::kUnallocated);
  EXPECT_TRUE(Decode(header, kCluster, bitmap, 1).has_space);
  EXPECT_FALSE(Decode(header, 0, 0, 1).has_space);
  EXPECT_EQ(Decode(header, kCluster, bitmap, 31).host, kCluster + 31 * 2048);
  EXPECT_EQ(Decode(header, 0, uint64_t{1} << 32, 0).kind, RunKind::kZero);
  EXPECT_FALSE(Decode(header, 0, uint64_t{1} << 32, 0).has_space);
  EXPECT_EQ(Decode(header, 0, 1, 0).kind, RunKind::kInvalid);
  EXPECT_EQ(Decode(header, kCluster, uint64_t{1} << 32 | 1, 0).kind, RunKind::kInvalid);
  EXPECT_EQ(Decode(header, kCluster | kReadsAsZero, 0, 0).kind, RunKind::kInvalid);
}

TEST(ClusterEntryTest, CompressedEntries) {
  for (uint32_t bits = kMinClusterBits; bits <= kMaxClusterBits; ++bits) {
    const EntryLayout layout(Layout(3, bits, 0));
    for (const uint64_t offset : {uint64_t{512}, uint64_t{1000}, (uint64_t{1} << 40) + 511}) {
      for (const uint64_t length : {uint64_t{1}, uint64_t{511}, layout.cluster_size()}) {
        const auto extent = DecodeCompressed(layout, EncodeCompressed(layout, offset, length));
        ASSERT_TRUE(extent.has_value());
        EXPECT_EQ(extent->offset, offset);
        EXPECT_GE(extent->length, length);
        EXPECT_LT(extent->length, length + 512);
        EXPECT_EQ((extent->offset + extent->length) % 512, 0u);
      }
    }
  }
  // The offset's field reaches past bit 55 where clusters are small.
  const EntryLayout small(Layout(3, 9, 0));
  EXPECT_FALSE(DecodeCompressed(small, kCompressed | uint64_t{1} << 56).has_value());
  EXPECT_FALSE(DecodeCompressed(small, kCompressed | kCopied | 512).has_value());
}

Header WithSnapshots(uint32_t count) {
  Header header;
  header.size = uint64_t{1} << 20;
  header.snapshot_count = count;
  return header;
}

std::vector<Snapshot> SampleSnapshots() {
  Snapshot first;
  first.id = "1";
  first.name = "before the upgrade";
  first.l1_table_offset = 3 * kCluster;
  first.l1_size = 1;
  first.date_seconds = 1'700'000'000;
  first.date_nanoseconds = 5;
  first.vm_clock_nanoseconds = 77;
  first.vm_state_size = uint64_t{5} << 32;
  first.disk_size = 1 << 20;
  Snapshot second = first;
  second.id = "2";
  second.name = "1";
  second.icount = 9;
  second.unknown_extra = {1, 2, 3};
  return {first, second};
}

TEST(SnapshotTableTest, EveryFieldComesBack) {
  const std::vector<Snapshot> snapshots = SampleSnapshots();
  const auto decoded = DecodeSnapshotTable(EncodeSnapshotTable(snapshots), WithSnapshots(2), 10 * kCluster);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_TRUE(*decoded == snapshots);
}

TEST(SnapshotTableTest, IsSearchedById) {
  const std::vector<Snapshot> snapshots = SampleSnapshots();
  EXPECT_EQ(FindSnapshot(snapshots, "1"), &snapshots[0]);
  EXPECT_EQ(FindSnapshot(snapshots, "before the upgrade"), &snapshots[0]);
  EXPECT_EQ(FindSnapshot(snapshots, "2"), &snapshots[1]);
  EXPECT_EQ(FindSnapshot(snapshots, "3"), nullptr);
}

TEST(SnapshotTableTest, OldEntriesHaveNoDiskSize) {
  std::vector<Snapshot> snapshots = {SampleSnapshots()[0]};
  snapshots[0].disk_size.reset();
  const std::vector<uint8_t> table = EncodeSnapshotTable(snapshots);
  Header header = WithSnapshots(1);
  EXPECT_THAT(std::string(DecodeSnapshotTable(table, header, 10 * kCluster).status().message()),
              HasSubstr("8 bytes of extra data"));
  header.version = 2;
  const auto decoded = DecodeSnapshotTable(table, header, 10 * kCluster);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_TRUE(*decoded == snapshots);
}

TEST(SnapshotTableTest, BrokenEntriesAreNamed) {
  const std::vector<uint8_t> table = EncodeSnapshotTable(SampleSnapshots());
  const auto error = [&](size_t at, uint64_t value) {
    std::vector<uint8_t> bytes = table;
    Store64(&bytes[at], value);
    return std::string(DecodeSnapshotTable(bytes, WithSnapshots(2), 10 * kCluster).status().message());
  };
  EXPECT_THAT(error(0, 10 * kCluster), HasSubstr("L1 table of entry 0"));
  EXPECT_THAT(error(0, 3 * kCluster + 1), HasSubstr("L1 table of entry 0"));
  EXPECT_THAT(error(8, 0), HasSubstr("too few"));
  EXPECT_THAT(error(8, uint64_t{0xffffffff} << 32), HasSubstr("4294967295 entries"));
  EXPECT_THAT(error(8, 0x00000001'ffffffff), HasSubstr("ends behind the file"));
  EXPECT_THAT(error(32, 0xffffffff), HasSubstr("bytes of extra data"));
  for (size_t size = 0; size < table.size() - 8; ++size) {
    const absl::Span<const uint8_t> cut = absl::MakeConstSpan(table).subspan(0, size);
    EXPECT_FALSE(DecodeSnapshotTable(cut, WithSnapshots(2), 10 * kCluster).ok()) << size;
  }
}

class BitmapDirectoryTest : public testing::Test {
 protected:
  BitmapDirectoryTest() {
    header_.size = uint64_t{100} << 20;
    entries_.resize(2);
    entries_[0] = {"one", 3 * kCluster, 1, kBitmapAuto, 9, {}};
    entries_[1] = {"two", 4 * kCluster, 1, kBitmapInUse | kBitmapExtraDataCompatible, 31, {1, 2, 3}};
  }

  // The message of what is wrong with a directory of this many entries, in a file of 8 clusters.
  std::string Error(std::vector<uint8_t> directory, uint32_t count = 2) {
    header_.bitmaps = BitmapsExtension{count, directory.size(), kCluster};
    const auto decoded = DecodeBitmapDirectory(directory, header_, 8 * kCluster);
    if (decoded.ok()) return "";
    EXPECT_EQ(decoded.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(decoded.status().message());
  }
  std::string Error() { return Error(EncodeBitmapDirectory(entries_)); }

  Header header_ = Layout(3, 16, 0);
  std::vector<BitmapEntry> entries_;
};

TEST_F(BitmapDirectoryTest, WhatIsEncodedIsDecoded) {
  EXPECT_EQ(Error(), "");
  const auto decoded = DecodeBitmapDirectory(EncodeBitmapDirectory(entries_), header_, 8 * kCluster);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(*decoded, entries_);
  EXPECT_EQ(entries_[0].bytes(), 32u);
  EXPECT_TRUE(entries_[0].understood());
  EXPECT_TRUE(entries_[1].understood());
  entries_[1].flags = 0;
  EXPECT_FALSE(entries_[1].understood());
}

TEST_F(BitmapDirectoryTest, EveryFieldHasItsBounds) {
  const std::vector<BitmapEntry> good = entries_;
  const auto expect = [&](const char* part) {
    EXPECT_THAT(Error(), HasSubstr(part));
    entries_ = good;
  };
  entries_[0].table_offset = 3 * kCluster + 512;
  expect("begin on a cluster");
  entries_[0].table_offset = 8 * kCluster;
  expect("ends behind the file");
  entries_[0].table_offset = ~uint64_t{0} << 16;
  expect("ends behind the file");
  entries_[0].table_offset = 0;
  expect("bitmap table at offset 0");
  entries_[0].table_size = 2;
  expect("bitmap_table_size 2");
  // One that was not closed may have any, inside the file.
  entries_[1].table_size = 3;
  EXPECT_EQ(Error(), "");
  entries_[1].table_size = 4 * kCluster / 8 + 1;
  expect("ends behind the file");
  entries_[0].flags = 8;
  expect("reserved flags");
  entries_[0].granularity_bits = 8;
  expect("granularity_bits 8");
  entries_[0].granularity_bits = 32;
  expect("granularity_bits 32");
  entries_[0].name = "";
  expect("name_size 0");
  entries_[0].name = std::string(1024, 'n');
  expect("name_size 1024");
  entries_[0].name = std::string("a\0b", 3);
  expect("NUL");
  entries_[0].name = "two";
  expect("name of another");
}

TEST_F(BitmapDirectoryTest, TheDirectoryEndsWhereItSays) {
  std::vector<uint8_t> directory = EncodeBitmapDirectory(entries_);
  EXPECT_THAT(Error(directory, 3), HasSubstr("behind the end of the directory"));
  EXPECT_THAT(Error(directory, 1), HasSubstr("more than its 1 entries"));
  EXPECT_THAT(Error(directory, kMaxBitmaps + 1), HasSubstr("nb_bitmaps"));
  directory[16] = 2;
  EXPECT_THAT(Error(directory), HasSubstr("type 2"));
  directory[16] = 1;
  directory[20] = 0xff;
  EXPECT_THAT(Error(directory), HasSubstr("extra data"));
}

TEST_F(BitmapDirectoryTest, PartsAreClustersOfTheFile) {
  const auto decode = [this](uint64_t entry) { return DecodeBitmapPart(header_, entry, 8 * kCluster); };
  EXPECT_EQ(decode(0)->offset, 0u);
  EXPECT_FALSE(decode(0)->all_ones);
  EXPECT_TRUE(decode(1)->all_ones);
  EXPECT_EQ(decode(5 * kCluster)->offset, 5 * kCluster);
  for (const uint64_t entry :
       {uint64_t{2}, 5 * kCluster + 1, 5 * kCluster + 512, 8 * kCluster, 5 * kCluster | uint64_t{1} << 56}) {
    EXPECT_FALSE(decode(entry).has_value()) << entry;
  }
}

}  // namespace
}  // namespace berth::qcow2
