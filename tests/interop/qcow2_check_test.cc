// Checking and repairing qcow2 images: what qemu-img check says of good ones, we say; what we mended, it
// finds nothing in, and every byte of the disk and of its snapshots is as it was.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/big_endian.h"
#include "image/io/progress.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "image/qcow2/check/check.h"
#include "image/qcow2/format/snapshot_table.h"
#include "image/qcow2/qcow2_device.h"
#include "nlohmann/json.hpp"
#include "tests/conformance/blocking_channel.h"
#include "tests/fakes/power_cut_device.h"
#include "tests/interop/program.h"
#include "tests/interop/temporary_directory.h"

namespace berth::testing {
namespace {

using nlohmann::json;
using qcow2::CheckResult;
using qcow2::Header;
using qcow2::Repair;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Bytes = std::vector<uint8_t>;

constexpr uint64_t kSize = 3 << 20;

// The order of each: refcount structures that are small enough to be hit, and every kind of entry.
const char* const kOptions[] = {"cluster_size=512",
                                "cluster_size=4k,refcount_bits=64",
                                "cluster_size=4k,refcount_bits=8",
                                "cluster_size=64k,compat=0.10",
                                "cluster_size=64k",
                                "cluster_size=16k,extended_l2=on,compression_type=zstd"};

class Qcow2CheckTest : public ::testing::Test {
 protected:
  void SetUp() override { pool_ = *ReactorPool::Create(1); }

  std::string Path(const std::string& name) const { return directory_.Path(name); }

  // An image with data, holes, zeroes, compressed clusters, two snapshots, and where it can be a bitmap.
  Bytes NewImage(const std::string& options) {
    const std::string path = Path("new");
    RunToSuccess({"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, std::to_string(kSize)});
    Change({"write -P 1 0 1000000", "write -z 100000 65536", "write -c -P 9 2097152 65536"});
    RunToSuccess({"qemu-img", "snapshot", "-c", "first", path});
    Change({"write -P 2 500000 900000", "discard 0 65536"});
    RunToSuccess({"qemu-img", "snapshot", "-c", "second", path});
    Change({"write -P 3 1600000 70000"});
    if (options.find("0.10") == std::string::npos) {
      RunToSuccess({"qemu-img", "bitmap", "--add", "-f", "qcow2", path, "changes"});
      Change({"write -P 4 2500000 100000"});
    }
    return Content("new");
  }

  void Change(const std::vector<std::string>& commands) {
    std::vector<std::string> arguments = {"qemu-io", "-f", "qcow2"};
    for (const std::string& command : commands) arguments.insert(arguments.end(), {"-c", command});
    arguments.push_back(Path("new"));
    RunToSuccess(arguments);
  }

  Bytes Content(const std::string& name) const {
    const std::string bytes = ReadFile(Path(name));
    return {bytes.begin(), bytes.end()};
  }

  std::shared_ptr<BlockDevice> Disk(const Bytes& content) {
    std::shared_ptr<BlockDevice> disk = *MemoryDevice::Create(content.size());
    EXPECT_TRUE(BlockingChannel(*disk, pool_->at(0)).Write(0, content).ok());
    return disk;
  }

  Bytes Read(BlockDevice& disk) { return BlockingChannel(disk, pool_->at(0)).Read(0, disk.size()); }

  static CheckResult Check(BlockDevice& disk, Repair repair) {
    const absl::StatusOr<Header> header = ReadQcow2Header(disk);
    EXPECT_TRUE(header.ok()) << header.status();
    Progress progress;
    absl::StatusOr<CheckResult> result = CheckImage(disk, *header, repair, progress);
    EXPECT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(progress.done(), progress.total());
    return result.ok() ? *std::move(result) : CheckResult();
  }

  // What qemu-img check says.
  json QemuCheck(const Bytes& image) {
    WriteFile(Path("checked"), std::string(image.begin(), image.end()));
    return json::parse(
        RunProgram({"qemu-img", "check", "-f", "qcow2", "--output=json", Path("checked")}).output);
  }

  // The disk and its snapshots, as qemu reads them.
  std::string Everything(const Bytes& image) {
    WriteFile(Path("read"), std::string(image.begin(), image.end()));
    std::string all;
    for (const std::string snapshot : {"", "first", "second"}) {
      std::vector<std::string> convert = {"qemu-img", "convert", "-f", "qcow2", "-O", "raw"};
      if (!snapshot.empty()) convert.insert(convert.end(), {"-l", snapshot});
      convert.insert(convert.end(), {Path("read"), Path("raw")});
      RunToSuccess(convert);
      all += ReadFile(Path("raw"));
    }
    return all;
  }

  void ExpectGood(const Bytes& image) {
    const json found = QemuCheck(image);
    EXPECT_FALSE(found.contains("corruptions")) << found;
    EXPECT_FALSE(found.contains("leaks")) << found;
    EXPECT_EQ(found.value("check-errors", 0), 0) << found;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<ReactorPool> pool_;
};

TEST_F(Qcow2CheckTest, OfGoodImagesQemuSaysTheSame) {
  for (const std::string options : kOptions) {
    SCOPED_TRACE(options);
    const Bytes image = NewImage(options);
    const CheckResult ours = Check(*Disk(image), Repair::kNone);
    const json theirs = QemuCheck(image);
    EXPECT_THAT(ours.findings, IsEmpty());
    EXPECT_EQ(ours.corruptions, 0);
    EXPECT_EQ(ours.leaks, 0);
    EXPECT_EQ(ours.image_end_offset, theirs["image-end-offset"]);
    EXPECT_EQ(ours.total_clusters, theirs["total-clusters"]);
    EXPECT_EQ(ours.allocated_clusters, theirs["allocated-clusters"]);
    EXPECT_EQ(ours.compressed_clusters, theirs.value("compressed-clusters", 0));
    EXPECT_EQ(ours.fragmented_clusters, theirs.value("fragmented-clusters", 0));
  }
}

// Where the refcount blocks of an image are.
std::vector<uint64_t> RefcountBlocks(const Bytes& image) {
  const uint64_t table = Load64(&image[48]);
  const uint64_t bytes = uint64_t{Load32(&image[56])} << Load32(&image[20]);
  std::vector<uint64_t> blocks;
  for (uint64_t at = table; at < table + bytes; at += 8) {
    if (const uint64_t block = Load64(&image[at]); block != 0) blocks.push_back(block);
  }
  return blocks;
}

// Damages that counting again mends.
void Damage(Bytes* image, int kind, std::mt19937_64& random) {
  const std::vector<uint64_t> blocks = RefcountBlocks(*image);
  const uint64_t cluster_size = uint64_t{1} << Load32(&(*image)[20]);
  const uint64_t block = blocks[random() % blocks.size()];
  const uint64_t table = Load64(&(*image)[48]);
  switch (kind) {
    case 0:  // Counts that are anything.
      for (int i = 0; i < 20; ++i) (*image)[block + random() % cluster_size] = static_cast<uint8_t>(random());
      break;
    case 1:  // A block that is gone.
      Store64(&(*image)[table], 0);
      break;
    case 2:  // One that is none.
      Store64(&(*image)[table], Load64(&(*image)[40]));
      break;
    case 3:  // All counts.
      for (const uint64_t each : blocks)
        std::fill_n(image->begin() + static_cast<ptrdiff_t>(each), cluster_size, 0);
      break;
    default: {  // The copied flag of an L1 entry.
      const uint64_t l1 = Load64(&(*image)[40]);
      if (Load64(&(*image)[l1]) != 0) (*image)[l1] ^= 0x80;
    }
  }
}

TEST_F(Qcow2CheckTest, WhatIsMendedQemuFindsNothingIn) {
  std::mt19937_64 random(7);
  for (const std::string options : kOptions) {
    const Bytes good = NewImage(options);
    const std::string everything = Everything(good);
    for (int kind = 0; kind < 5; ++kind) {
      SCOPED_TRACE(absl::StrCat(options, ", damage ", kind));
      Bytes bad = good;
      Damage(&bad, kind, random);
      const std::shared_ptr<BlockDevice> disk = Disk(bad);
      const CheckResult found = Check(*disk, Repair::kNone);
      EXPECT_GT(found.corruptions + found.leaks, 0);
      EXPECT_FALSE(found.findings.empty());
      EXPECT_EQ(Read(*disk), bad) << "looking changed the image";
      const CheckResult mended = Check(*disk, Repair::kAll);
      EXPECT_EQ(mended.corruptions, 0);
      EXPECT_EQ(mended.leaks, 0);
      EXPECT_EQ(mended.corruptions_fixed, found.corruptions);
      EXPECT_EQ(mended.leaks_fixed, found.leaks);
      const Bytes after = Read(*disk);
      ExpectGood(after);
      EXPECT_TRUE(Everything(after) == everything);
      const CheckResult again = Check(*disk, Repair::kNone);
      EXPECT_EQ(again.corruptions + again.leaks, 0) << again.findings.front();
    }
  }
}

TEST_F(Qcow2CheckTest, LeaksAloneAreMendedAlone) {
  Bytes image = NewImage("cluster_size=4k");
  const uint64_t block = RefcountBlocks(image)[0];
  const uint64_t end = Check(*Disk(image), Repair::kNone).image_end_offset >> 12;
  // One cluster too many, one too few.
  Store16(&image[block + 2 * (end + 5)], 1);
  Store16(&image[block + 2 * 1], 0);
  const std::shared_ptr<BlockDevice> disk = Disk(image);
  const CheckResult result = Check(*disk, Repair::kLeaks);
  EXPECT_EQ(result.leaks_fixed, 1);
  EXPECT_EQ(result.leaks, 0);
  EXPECT_EQ(result.corruptions, 1);
  EXPECT_EQ(result.corruptions_fixed, 0);
  const json theirs = QemuCheck(Read(*disk));
  EXPECT_FALSE(theirs.contains("leaks")) << theirs;
  EXPECT_TRUE(theirs.contains("corruptions")) << theirs;
}

// They are told, stay, and keep others from being freed.
TEST_F(Qcow2CheckTest, BrokenEntriesAreTold) {
  Bytes image = NewImage("cluster_size=4k");
  const uint64_t l1 = Load64(&image[40]);
  const uint64_t l2 = Load64(&image[l1]) & 0x00fffffffffffe00;
  Store64(&image[l2 + 8 * 40], uint64_t{1} << 63 | (uint64_t{1} << 40));
  Store64(&image[l2 + 8 * 41], Load64(&image[l2 + 8 * 41]) | 0x200);
  const std::shared_ptr<BlockDevice> disk = Disk(image);
  const CheckResult result = Check(*disk, Repair::kAll);
  EXPECT_EQ(result.corruptions, 2);
  EXPECT_EQ(result.leaks_fixed, 0);
  ASSERT_GE(result.findings.size(), 2u);
  EXPECT_THAT(result.findings[0], HasSubstr("names a cluster behind the end of the file, at 1099511627776"));
  EXPECT_THAT(result.findings[1], HasSubstr(absl::StrCat("the L2 table at offset ", l2, " is none")));
}

// One L2 table that every entry of a large L1 table names is read once.
TEST_F(Qcow2CheckTest, ATableThatIsNamedOftenIsReadOnce) {
  RunToSuccess({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M,refcount_bits=64",
                Path("new"), "128T"});
  Bytes image = Content("new");
  const uint64_t l1 = Load64(&image[40]);
  const uint64_t entries = Load32(&image[36]);
  ASSERT_EQ(entries, 256);
  image.resize(((image.size() - 1) | ((2 << 20) - 1)) + 1 + (4 << 20));
  const uint64_t table = image.size() - (4 << 20);
  for (uint64_t i = 0; i < entries; ++i) Store64(&image[l1 + 8 * i], table);
  Store64(&image[table], table + (2 << 20));
  const CheckResult result = Check(*Disk(image), Repair::kNone);
  // The table and its cluster, which count as free.
  EXPECT_EQ(result.corruptions, 2);
  EXPECT_THAT(result.findings[0], HasSubstr("has 256 references and a count of 0"));
  EXPECT_THAT(result.findings[1], HasSubstr("has 256 references and a count of 0"));
}

// Ten thousand snapshots that name one L1 table are more than the file can hold.
TEST_F(Qcow2CheckTest, TablesThatShareTheirBytesAreRefused) {
  RunToSuccess({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", Path("new"), "3M"});
  Bytes image = Content("new");
  qcow2::Snapshot snapshot;
  snapshot.l1_table_offset = Load64(&image[40]);
  snapshot.l1_size = Load32(&image[36]);
  snapshot.disk_size = kSize;
  std::vector<qcow2::Snapshot> snapshots;
  for (int i = 0; i < 10'000; ++i) {
    snapshot.id = std::to_string(i);
    snapshots.push_back(snapshot);
  }
  const Bytes table = EncodeSnapshotTable(snapshots);
  image.resize(64 << 10);
  Store32(&image[60], static_cast<uint32_t>(snapshots.size()));
  Store64(&image[64], image.size());
  image.insert(image.end(), table.begin(), table.end());
  const std::shared_ptr<BlockDevice> disk = Disk(image);
  const absl::StatusOr<Header> header = ReadQcow2Header(*disk);
  ASSERT_TRUE(header.ok()) << header.status();
  Progress progress;
  const absl::StatusOr<CheckResult> result = CheckImage(*disk, *header, Repair::kNone, progress);
  EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << result.status();
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("together are larger than its file"));
}

// The counts go up before the flags say that a cluster is used once, and down at the end: whatever a cut
// leaves can be mended, and has every byte.
TEST_F(Qcow2CheckTest, ACutWhileItIsMendedLosesNothing) {
  std::mt19937_64 random(11);
  for (const int kind : {0, 1, 3}) {
    const Bytes good = NewImage("cluster_size=512");
    const std::string everything = Everything(good);
    Bytes bad = good;
    Damage(&bad, kind, random);
    const auto cut = std::make_shared<PowerCutDevice>(Disk(bad), bad);
    Check(*cut, Repair::kAll);
    for (int trial = 0; trial < 6; ++trial) {
      const size_t moment = random() % (cut->moments() + 1);
      SCOPED_TRACE(absl::StrCat("damage ", kind, ", cut at ", moment, " of ", cut->moments()));
      const std::shared_ptr<BlockDevice> disk = Disk(cut->DiskAfterCut(moment, random));
      const CheckResult mended = Check(*disk, Repair::kAll);
      EXPECT_EQ(mended.corruptions, 0);
      const Bytes after = Read(*disk);
      ExpectGood(after);
      EXPECT_TRUE(Everything(after) == everything);
    }
  }
}

}  // namespace
}  // namespace berth::testing
