#include "image/partition/partition_table.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace berth {
namespace {

using Bytes = std::vector<uint8_t>;

// A disk of testdata, which sfdisk wrote; the file's first byte is the fuzzer's.
Bytes Disk(const std::string& name) {
  std::ifstream file("image/partition/testdata/" + name, std::ios::binary);
  Bytes bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  EXPECT_FALSE(bytes.empty()) << name;
  bytes.erase(bytes.begin());
  return bytes;
}

absl::StatusOr<Partition> Find(const Bytes& disk, int number) {
  const auto read = [&disk](uint64_t offset, absl::Span<uint8_t> out) {
    EXPECT_LE(offset + out.size(), disk.size());
    std::memcpy(out.data(), disk.data() + offset, out.size());
    return absl::OkStatus();
  };
  return FindPartition(disk.size(), read, number);
}

Partition Sectors(uint64_t first, uint64_t count) { return {first * 512, count * 512}; }

TEST(PartitionTableTest, FindsPrimaryAndLogicalPartitions) {
  const Bytes disk = Disk("mbr");
  EXPECT_EQ(*Find(disk, 1), Sectors(1, 3));
  EXPECT_EQ(*Find(disk, 5), Sectors(6, 4));
  EXPECT_EQ(*Find(disk, 6), Sectors(12, 2));
  EXPECT_EQ(*Find(disk, 7), Sectors(16, 8));
  for (int missing : {3, 4, 8, 1000}) {
    EXPECT_TRUE(absl::IsNotFound(Find(disk, missing).status())) << missing;
  }
  EXPECT_TRUE(absl::StrContains(Find(disk, 2).status().message(), "extended"));
  EXPECT_TRUE(absl::IsInvalidArgument(Find(disk, 0).status()));
}

TEST(PartitionTableTest, FindsPartitionsOfAGpt) {
  const Bytes disk = Disk("gpt");
  EXPECT_EQ(*Find(disk, 1), Sectors(34, 8));
  EXPECT_EQ(*Find(disk, 2), Sectors(44, 16));
  EXPECT_TRUE(absl::IsNotFound(Find(disk, 3).status()));
  EXPECT_TRUE(absl::IsNotFound(Find(disk, 129).status()));
}

TEST(PartitionTableTest, TakesTheCopyOfADamagedGpt) {
  for (size_t damaged : {size_t{512}, size_t{512 + 30}, size_t{1024 + 40}}) {
    Bytes disk = Disk("gpt");
    disk[damaged] ^= 1;
    EXPECT_EQ(*Find(disk, 2), Sectors(44, 16)) << damaged;
    disk[disk.size() - 512] ^= 1;
    EXPECT_TRUE(absl::IsInvalidArgument(Find(disk, 2).status())) << damaged;
  }
}

TEST(PartitionTableTest, BelievesNoEntryThatLeavesTheDisk) {
  Bytes disk = Disk("mbr");
  disk[446 + 12] = 200;  // The first partition's length.
  const absl::Status status = Find(disk, 1).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "200 blocks from 1")) << status;
}

TEST(PartitionTableTest, EndsInARingOfExtendedPartitions) {
  Bytes disk = Disk("mbr");
  // The second link leads to the first.
  const size_t second = 11 * 512;
  std::fill_n(disk.begin() + second + 446 + 16 + 8, 4, 0);
  EXPECT_EQ(*Find(disk, 5), Sectors(6, 4));
  EXPECT_TRUE(absl::IsNotFound(Find(disk, 1000).status()));
}

TEST(PartitionTableTest, SaysThatThereIsNoTable) {
  EXPECT_TRUE(absl::IsNotFound(Find(Bytes(4096, 0), 1).status()));
  EXPECT_TRUE(absl::IsNotFound(Find(Bytes(100, 0), 1).status()));
}

}  // namespace
}  // namespace berth
