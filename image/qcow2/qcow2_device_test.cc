// Images made by hand, as no program makes them: broken ones, and such that show how they are read. What
// qemu makes is tested in tests/interop.
#include "image/qcow2/qcow2_device.h"

#include <cerrno>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/big_endian.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "image/qcow2/deflate.h"
#include "image/qcow2/format/cluster_entry.h"
#include "image/qcow2/format/snapshot_table.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/fakes/faulty_device.h"
#include "tests/fakes/recording_device.h"

namespace berth {
namespace {

using qcow2::Deflate;
using qcow2::Header;
using qcow2::kCopied;
using testing::HasSubstr;

constexpr uint64_t kCluster = 65'536;
constexpr uint64_t kRefcounts = 1 * kCluster;
constexpr uint64_t kL1 = 2 * kCluster;
constexpr uint64_t kL2 = 3 * kCluster;
constexpr uint64_t kData = 4 * kCluster;
constexpr uint64_t kFileSize = 16 * kCluster;
constexpr uint64_t kSize = 8 * kCluster + 512;

class Qcow2DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    header_.size = kSize;
    header_.l1_size = 1;
    header_.l1_table_offset = kL1;
    header_.refcount_table_offset = kRefcounts;
    header_.refcount_table_clusters = 1;
    MakeFile(kFileSize);
    PutEntry(kL1, 0, kCopied | kL2);
  }

  void MakeFile(uint64_t size) {
    auto file = MemoryDevice::Create(size);
    ASSERT_TRUE(file.ok());
    file_ = *std::move(file);
  }
  void Put(uint64_t offset, absl::Span<const uint8_t> bytes) {
    ASSERT_TRUE(BlockingChannel(*file_, pool_->at(0)).Write(offset, bytes).ok());
  }
  void PutEntry(uint64_t table, uint64_t index, uint64_t entry) {
    uint8_t bytes[8];
    Store64(bytes, entry);
    Put(table + index * 8, bytes);
  }
  void Fill(uint64_t offset, uint64_t length, uint8_t byte) {
    Put(offset, std::vector<uint8_t>(length, byte));
  }

  absl::StatusOr<std::shared_ptr<Qcow2Device>> TryOpen(const Qcow2Options& options = {},
                                                       std::shared_ptr<BlockDevice> backing = nullptr) {
    const auto bytes = EncodeHeader(header_);
    if (!bytes.ok()) return bytes.status();
    Put(0, *bytes);
    const auto header = ReadQcow2Header(*file_);
    if (!header.ok()) return header.status();
    return Qcow2Device::Open({file_, nullptr, std::move(backing)}, *header, options);
  }
  std::shared_ptr<Qcow2Device> Open(std::shared_ptr<BlockDevice> backing = nullptr) {
    auto device = TryOpen({}, std::move(backing));
    EXPECT_TRUE(device.ok()) << device.status();
    return *std::move(device);
  }
  IoResult ReadResult(uint64_t offset, size_t length) {
    std::vector<uint8_t> bytes(length);
    const std::shared_ptr<Qcow2Device> device = Open();
    return BlockingChannel(*device, pool_->at(0)).Read(offset, absl::MakeSpan(bytes));
  }
  std::vector<uint8_t> Read(uint64_t offset, size_t length) {
    return BlockingChannel(*Open(), pool_->at(0)).Read(offset, length);
  }

  std::unique_ptr<ReactorPool> pool_;
  Header header_;
  std::shared_ptr<BlockDevice> file_;
};

TEST_F(Qcow2DeviceTest, BrokenL2EntriesFailTheirClusterAlone) {
  const uint64_t broken[] = {
      2,                          // A reserved bit.
      kData | uint64_t{1} << 56,  // Another.
      kData + 512,                // Inside a cluster.
      kCopied,                    // The header as data.
      kCopied | kFileSize,        // Behind the end.
      kCopied | (qcow2::kOffsetMask & ~(kCluster - 1)),
      qcow2::kCompressed | kFileSize,
      qcow2::kCompressed | kData,  // Zeroes are no compressed data.
  };
  Fill(kData + kCluster, kCluster, 7);
  PutEntry(kL2, 1, kCopied | (kData + kCluster));
  for (const uint64_t entry : broken) {
    PutEntry(kL2, 0, entry);
    EXPECT_EQ(ReadResult(0, 512).error, EIO) << std::hex << entry;
    EXPECT_EQ(ReadResult(0, 2 * kCluster).error, EIO) << std::hex << entry;
    EXPECT_EQ(Read(kCluster, 512), std::vector<uint8_t>(512, 7)) << std::hex << entry;
  }
}

TEST_F(Qcow2DeviceTest, BrokenL1EntriesAreErrors) {
  const uint64_t broken[] = {
      kL2 | 1,
      kL2 | uint64_t{1} << 56,
      kL2 + 512,
      kCopied | kL1,  // The table itself.
      kCopied | kRefcounts,
      kFileSize,
      kFileSize - kCluster / 2,
      qcow2::kOffsetMask & ~(kCluster - 1),
  };
  for (const uint64_t entry : broken) {
    PutEntry(kL1, 0, entry);
    EXPECT_EQ(ReadResult(0, 512).error, EIO) << std::hex << entry;
    std::vector<Extent> extents;
    const std::shared_ptr<Qcow2Device> device = Open();
    BlockingChannel channel(*device, pool_->at(0));
    EXPECT_EQ(channel.Extents(0, kSize, &extents).error, EIO) << std::hex << entry;
  }
  PutEntry(kL1, 0, 0);
  EXPECT_EQ(Read(0, 512), std::vector<uint8_t>(512, 0));
}

TEST_F(Qcow2DeviceTest, AFileMayEndInsideItsLastCluster) {
  MakeFile(kData + 1000);
  PutEntry(kL1, 0, kCopied | kL2);
  Fill(kData, 1000, 5);
  PutEntry(kL2, 0, kCopied | kData);
  std::vector<uint8_t> expected(kCluster);
  std::fill_n(expected.begin(), 1000, 5);
  EXPECT_EQ(Read(0, kCluster), expected);
  EXPECT_EQ(Read(2000, 100), std::vector<uint8_t>(100));
}

TEST_F(Qcow2DeviceTest, NeighboursAreReadAtOnce) {
  for (uint64_t i = 0; i < 4; ++i) {
    Fill(kData + i * kCluster, kCluster, static_cast<uint8_t>(i + 1));
    PutEntry(kL2, i, kCopied | (kData + i * kCluster));
  }
  PutEntry(kL2, 4, kCopied | (kData + 8 * kCluster));
  auto recording = std::make_shared<RecordingDevice>(file_);
  file_ = recording;
  const std::shared_ptr<Qcow2Device> device = Open();
  BlockingChannel channel(*device, pool_->at(0));
  channel.Read(0, 512);  // Loads the slice of the L2 table.
  recording->TakeEvents();
  const std::vector<uint8_t> bytes = channel.Read(100, 5 * kCluster - 200);
  EXPECT_EQ(bytes[0], 1);
  EXPECT_EQ(bytes[4 * kCluster - 101], 4);
  std::vector<std::pair<uint64_t, uint64_t>> reads;
  for (const RecordingDevice::Event& event : recording->TakeEvents()) {
    if (event.phase == RecordingDevice::Phase::kStart) reads.emplace_back(event.offset, event.length);
  }
  EXPECT_THAT(reads, testing::ElementsAre(std::make_pair(kData + 100, 4 * kCluster - 100),
                                          std::make_pair(kData + 8 * kCluster, kCluster - 100)));
}

TEST_F(Qcow2DeviceTest, ABackingImageOfAnotherSize) {
  PutEntry(kL2, 1, qcow2::kReadsAsZero);
  for (const uint64_t backing_size : {kCluster / 2, kSize + kCluster}) {
    std::shared_ptr<BlockDevice> backing = *MemoryDevice::Create(backing_size);
    ASSERT_TRUE(BlockingChannel(*backing, pool_->at(0)).Write(0, std::vector<uint8_t>(backing_size, 9)).ok());
    const std::shared_ptr<Qcow2Device> device = Open(backing);
    EXPECT_EQ(device->size(), kSize);
    BlockingChannel channel(*device, pool_->at(0));
    std::vector<uint8_t> expected(kSize);
    std::fill_n(expected.begin(), std::min(backing_size, kSize), 9);
    std::fill_n(expected.begin() + kCluster, kCluster, 0);
    EXPECT_TRUE(channel.Read(0, kSize) == expected) << backing_size;
  }
}

TEST_F(Qcow2DeviceTest, ErrorsOfTheFilesReachTheReader) {
  Fill(kData, kCluster, 5);
  PutEntry(kL2, 0, kCopied | kData);
  PutEntry(kL2, 1, kCopied | (kData + 2 * kCluster));
  const std::shared_ptr<BlockDevice> good = file_;
  auto faulty = std::make_shared<FaultyDevice>(good);
  file_ = faulty;
  const std::shared_ptr<Qcow2Device> device = Open();
  BlockingChannel channel(*device, pool_->at(0));
  std::vector<uint8_t> bytes(2 * kCluster);
  faulty->Fail(FaultyDevice::kRead, EIO, 1);
  EXPECT_EQ(channel.Read(0, absl::MakeSpan(bytes)).error, EIO);  // Of the table.
  EXPECT_TRUE(channel.Read(0, absl::MakeSpan(bytes)).ok());
  faulty->Fail(FaultyDevice::kRead, ENOMEM, 1);
  EXPECT_EQ(channel.Read(0, absl::MakeSpan(bytes)).error, ENOMEM);  // Of one of two pieces.
}

// Runs `count` reads of `length` bytes each at once and returns when all have ended.
void ReadAtOnce(BlockDevice& device, Reactor& reactor, int count, uint64_t length, uint8_t expected) {
  const auto run = [&]() -> Task<void> {
    auto channel = device.OpenChannel(reactor);
    EXPECT_TRUE(channel.ok()) << channel.status();
    Gate gate(reactor);
    for (int i = 0; i < count; ++i) {
      Spawn([](BlockChannel& out, uint64_t offset, uint64_t bytes, uint8_t byte, Gate::Holder) -> Task<void> {
        std::vector<uint8_t> buffer(bytes);
        const IoResult result = co_await out.Read(offset, absl::MakeSpan(buffer));
        EXPECT_TRUE(result.ok()) << "errno " << result.error;
        EXPECT_EQ(buffer, std::vector<uint8_t>(bytes, byte));
      }(**channel, static_cast<uint64_t>(i) * length, length, expected, gate.Enter()));
    }
    co_await gate.Close();
  };
  RunOn(reactor, run);
}

TEST_F(Qcow2DeviceTest, PiecesOfOneRequestAreUnderWayTogether) {
  Fill(kData, 10 * kCluster, 6);
  for (uint64_t i = 0; i < 5; ++i) PutEntry(kL2, i, kCopied | (kData + 2 * i * kCluster));
  auto faulty = std::make_shared<FaultyDevice>(file_);
  file_ = faulty;
  const std::shared_ptr<Qcow2Device> device = Open();
  BlockingChannel(*device, pool_->at(0)).Read(0, 512);
  faulty->Hold(FaultyDevice::kRead);
  std::thread reader([&] { ReadAtOnce(*device, pool_->at(0), 1, 5 * kCluster, 6); });
  EXPECT_TRUE(faulty->WaitUntilHeld(FaultyDevice::kRead, 5));
  faulty->Release(FaultyDevice::kRead);
  reader.join();
}

TEST_F(Qcow2DeviceTest, ACompressedClusterIsDecompressedOnce) {
  const std::vector<uint8_t> data(kCluster, 77);
  const std::vector<uint8_t> compressed = Deflate(data);
  Put(kData + 100, compressed);
  PutEntry(kL2, 0, qcow2::EncodeCompressed(qcow2::EntryLayout(header_), kData + 100, compressed.size()));
  auto faulty = std::make_shared<FaultyDevice>(file_);
  file_ = faulty;
  const std::shared_ptr<Qcow2Device> device = Open();
  BlockingChannel(*device, pool_->at(0)).Read(0, 512);
  uint64_t before = faulty->count(FaultyDevice::kRead);
  ReadAtOnce(*device, pool_->at(0), 16, 4096, 77);
  EXPECT_EQ(faulty->count(FaultyDevice::kRead), before + 1);
  before = faulty->count(FaultyDevice::kRead);
  ReadAtOnce(*device, pool_->at(0), 1, kCluster, 77);
  EXPECT_EQ(faulty->count(FaultyDevice::kRead), before + 1);
  // What failed is tried again.
  BlockingChannel channel(*device, pool_->at(0));
  std::vector<uint8_t> bytes(512);
  faulty->Fail(FaultyDevice::kRead, EIO, 1);
  EXPECT_EQ(channel.Read(0, absl::MakeSpan(bytes)).error, EIO);
  EXPECT_TRUE(channel.Read(0, absl::MakeSpan(bytes)).ok());
  EXPECT_EQ(bytes[511], 77);
}

TEST_F(Qcow2DeviceTest, WhatIsNotThereIsSaid) {
  Qcow2Options options;
  options.snapshot = "nightly";
  EXPECT_EQ(TryOpen(options).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(TryOpen(options).status().message()), HasSubstr("it has none at all"));
  header_.crypt_method = qcow2::CryptMethod::kLuks;
  EXPECT_EQ(TryOpen().status().code(), absl::StatusCode::kFailedPrecondition);
  header_.crypt_method = qcow2::CryptMethod::kNone;
  header_.incompatible_features = qcow2::kExternalDataFile;
  EXPECT_EQ(TryOpen().status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(Qcow2DeviceTest, ASnapshotHasATableAndASizeOfItsOwn) {
  qcow2::Snapshot snapshot;
  snapshot.id = "1";
  snapshot.name = "small";
  snapshot.l1_table_offset = 9 * kCluster;
  snapshot.l1_size = 1;
  snapshot.disk_size = kCluster;
  header_.snapshot_count = 1;
  header_.snapshots_offset = 8 * kCluster;
  Put(8 * kCluster, qcow2::EncodeSnapshotTable({snapshot}));
  PutEntry(9 * kCluster, 0, 10 * kCluster);
  PutEntry(10 * kCluster, 0, kData);
  Fill(kData, kCluster, 3);
  Qcow2Options options;
  options.snapshot = "small";
  const auto device = TryOpen(options);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ((*device)->size(), kCluster);
  EXPECT_EQ(BlockingChannel(**device, pool_->at(0)).Read(0, kCluster), std::vector<uint8_t>(kCluster, 3));
  EXPECT_EQ(Read(0, kCluster), std::vector<uint8_t>(kCluster, 0));
}

TEST_F(Qcow2DeviceTest, AnEmptyDiskCanBeOpened) {
  header_.size = 0;
  EXPECT_EQ(Open()->size(), 0u);
}

TEST_F(Qcow2DeviceTest, NothingIsEverWritten) {
  const std::shared_ptr<Qcow2Device> device = Open();
  EXPECT_TRUE(device->traits().read_only);
  EXPECT_EQ(device->Resize(kSize * 2).code(), absl::StatusCode::kFailedPrecondition);
  BlockingChannel channel(*device, pool_->at(0));
  EXPECT_EQ(channel.Write(0, std::vector<uint8_t>(512)).error, EPERM);
  EXPECT_EQ(channel.Zero(0, 512).error, EPERM);
  EXPECT_EQ(channel.Discard(0, 512).error, EPERM);
  EXPECT_TRUE(channel.Flush().ok());
}

// A cache of one slice, and more slices than a channel remembers.
TEST_F(Qcow2DeviceTest, ASmallCacheIsEnough) {
  header_.size = uint64_t{16} << 30;
  header_.l1_size = 32;
  for (uint64_t i = 0; i < 32; ++i) PutEntry(kL1, i, i % 2 == 0 ? kCopied | kL2 : 0);
  for (uint64_t i = 0; i < 16; ++i) {
    Fill(kData + i % 8 * kCluster, 1, static_cast<uint8_t>(i % 8 + 1));
    PutEntry(kL2, i * 512, kCopied | (kData + i % 8 * kCluster));
  }
  Qcow2Options options;
  options.l2_cache_bytes = 4096;
  const auto device = TryOpen(options);
  ASSERT_TRUE(device.ok()) << device.status();
  BlockingChannel channel(**device, pool_->at(0));
  BlockingChannel other(**device, pool_->at(0));
  constexpr uint64_t kSlice = uint64_t{32} << 20;
  for (int round = 0; round < 3; ++round) {
    for (uint64_t i = 0; i < 512; ++i) {
      const uint8_t expected = i / 16 % 2 == 0 ? static_cast<uint8_t>(i % 8 + 1) : 0;
      ASSERT_EQ(channel.Read(i * kSlice, 1), std::vector<uint8_t>(1, expected)) << i;
      ASSERT_EQ(other.Read((511 - i) * kSlice, 1).size(), 1u);
    }
  }
}

}  // namespace
}  // namespace berth
