#include "image/raw/raw_device.h"

#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"
#include "image/raw/temporary_image.h"

namespace berth {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;

std::unique_ptr<ReactorPool> MakeReactors(int count) {
  auto pool = ReactorPool::Create(count);
  EXPECT_TRUE(pool.ok()) << pool.status();
  return *std::move(pool);
}

// Runs `use(channel)`, a coroutine, on one of the reactors.
template <typename Use>
void OnChannel(BlockDevice& device, Reactor& reactor, Use use) {
  auto run = [&]() -> Task<void> {
    auto channel = device.OpenChannel(reactor);
    EXPECT_TRUE(channel.ok()) << channel.status();
    if (channel.ok()) co_await use(**channel);
  };
  RunOn(reactor, run);
}

std::shared_ptr<RawDevice> OpenOk(const std::string& path, const RawOptions& options = {}) {
  auto device = RawDevice::Open(path, options);
  EXPECT_TRUE(device.ok()) << device.status();
  return device.ok() ? *std::move(device) : nullptr;
}

std::string CacheName(CacheMode mode) {
  switch (mode) {
    case CacheMode::kWriteback:
      return "Writeback";
    case CacheMode::kWritethrough:
      return "Writethrough";
    case CacheMode::kNone:
      return "None";
    case CacheMode::kDirectsync:
      return "Directsync";
    case CacheMode::kUnsafe:
      return "Unsafe";
  }
  return "";
}

// Directory, cache mode.
class RawModesTest : public testing::TestWithParam<std::tuple<bool, CacheMode>> {
 protected:
  std::string directory() const { return std::get<0>(GetParam()) ? MemoryDirectory() : DiskDirectory(); }
  RawOptions options() const {
    RawOptions options;
    options.cache = std::get<1>(GetParam());
    return options;
  }
  std::unique_ptr<ReactorPool> reactors_ = MakeReactors(2);
};

INSTANTIATE_TEST_SUITE_P(Modes, RawModesTest,
                         testing::Combine(testing::Bool(),
                                          testing::Values(CacheMode::kWriteback, CacheMode::kWritethrough,
                                                          CacheMode::kNone, CacheMode::kDirectsync,
                                                          CacheMode::kUnsafe)),
                         [](const auto& info) {
                           return CacheName(std::get<1>(info.param)) +
                                  (std::get<0>(info.param) ? "InMemory" : "OnDisk");
                         });

// Random requests of any alignment against a plain array.
TEST_P(RawModesTest, DoesWhatAnArrayDoes) {
  constexpr uint64_t kSize = kMiB + 1337;  // No multiple of anything.
  TemporaryImage image(directory(), kSize);
  std::shared_ptr<RawDevice> device = OpenOk(image.path(), options());
  ASSERT_NE(device, nullptr);
  ASSERT_EQ(device->size(), kSize);
  std::vector<uint8_t> model(kSize);
  OnChannel(*device, reactors_->at(0), [&](BlockChannel& channel) -> Task<void> {
    std::mt19937_64 random(20);
    for (int i = 0; i < 400; ++i) {
      uint64_t offset = random() % kSize;
      uint64_t length = random() % std::min<uint64_t>(kSize - offset, 70000) + 1;
      if (random() % 3 == 0) {  // On blocks.
        offset &= ~uint64_t{4095};
        length = std::min((length + 4095) & ~uint64_t{4095}, kSize - offset);
      }
      std::vector<uint8_t> bytes(length);
      const auto begin = model.begin() + static_cast<int64_t>(offset);
      const auto end = begin + static_cast<int64_t>(length);
      switch (random() % 6) {
        case 0:
        case 1: {
          std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<uint8_t>(random()); });
          const WriteFlags flags = random() % 4 == 0 ? WriteFlags::kFua : WriteFlags::kNone;
          EXPECT_EQ(co_await channel.Write(offset, bytes, flags), IoResult::Ok());
          std::copy(bytes.begin(), bytes.end(), begin);
          break;
        }
        case 2: {
          const ZeroFlags flags = static_cast<ZeroFlags>(random() % 8);
          const IoResult result = co_await channel.Zero(offset, length, flags);
          if (Has(flags, ZeroFlags::kFastOnly) && result.error == ENOTSUP) break;
          EXPECT_EQ(result, IoResult::Ok());
          std::fill(begin, end, 0);
          break;
        }
        case 3:
          EXPECT_EQ(co_await channel.Discard(offset, length), IoResult::Ok());
          // Its content is anything now: take over what it is.
          EXPECT_EQ(co_await channel.Read(offset, absl::MakeSpan(bytes)), IoResult::Ok());
          std::copy(bytes.begin(), bytes.end(), begin);
          break;
        case 4: {
          std::vector<Extent> extents;
          EXPECT_EQ(co_await channel.Extents(offset, length, &extents), IoResult::Ok());
          uint64_t position = offset;
          for (const Extent& extent : extents) {
            if (extent.zero) {
              const auto from = model.begin() + static_cast<int64_t>(position);
              EXPECT_TRUE(std::all_of(from, from + static_cast<int64_t>(extent.length),
                                      [](uint8_t b) { return b == 0; }))
                  << "data called zero at " << position;
            }
            position += extent.length;
          }
          EXPECT_GT(position, offset);
          EXPECT_LE(position, offset + length);
          break;
        }
        case 5:
          EXPECT_EQ(co_await channel.Flush(), IoResult::Ok());
          EXPECT_EQ(co_await channel.Prefetch(offset, length), IoResult::Ok());
          EXPECT_EQ(co_await channel.Read(offset, absl::MakeSpan(bytes)), IoResult::Ok());
          EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), begin)) << offset << " " << length;
          break;
      }
    }
    std::vector<uint8_t> all(kSize);
    EXPECT_EQ(co_await channel.Read(0, absl::MakeSpan(all)), IoResult::Ok());
    EXPECT_TRUE(all == model);
  });
  device.reset();
  EXPECT_EQ(image.size(), kSize);
  EXPECT_TRUE(image.Contents() == model);
}

// Neighbours in one block, from two reactors at once: nobody's bytes are lost.
TEST_P(RawModesTest, UnalignedNeighboursDoNotLoseEachOther) {
  constexpr uint64_t kSize = 64 << 10;
  constexpr uint64_t kPiece = 100;
  constexpr int kRounds = 20;
  TemporaryImage image(directory(), kSize - 7);
  std::shared_ptr<RawDevice> device = OpenOk(image.path(), options());
  ASSERT_NE(device, nullptr);
  const uint64_t pieces = device->size() / kPiece;
  // Every reactor writes every other piece, all of them in flight at once, several times.
  std::vector<std::thread> threads;
  for (uint64_t r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      Reactor& reactor = reactors_->at(r);
      OnChannel(*device, reactor, [&](BlockChannel& channel) -> Task<void> {
        for (int round = 1; round <= kRounds; ++round) {
          const std::vector<uint8_t> bytes(kPiece, static_cast<uint8_t>(round));
          Gate gate(reactor);
          for (uint64_t piece = r; piece < pieces; piece += 2) {
            Spawn([](BlockChannel& to, uint64_t at, const std::vector<uint8_t>* data,
                     Gate::Holder) -> Task<void> {
              EXPECT_EQ(co_await to.Write(at, *data, WriteFlags::kNone), IoResult::Ok());
            }(channel, piece * kPiece, &bytes, gate.Enter()));
          }
          co_await gate.Close();
        }
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  device.reset();
  const std::vector<uint8_t> contents = image.Contents();
  for (uint64_t i = 0; i < pieces * kPiece; ++i) ASSERT_EQ(contents[i], kRounds) << i;
}

TEST_P(RawModesTest, GrowsAndShrinks) {
  TemporaryImage image(directory(), 10000);
  std::shared_ptr<RawDevice> device = OpenOk(image.path(), options());
  ASSERT_NE(device, nullptr);
  OnChannel(*device, reactors_->at(0), [&](BlockChannel& channel) -> Task<void> {
    const std::vector<uint8_t> ones(10000, 1);
    EXPECT_EQ(co_await channel.Write(0, ones, WriteFlags::kNone), IoResult::Ok());
    EXPECT_TRUE(device->Resize(5001).ok());
    EXPECT_EQ(device->size(), 5001u);
    std::vector<uint8_t> bytes(10000);
    EXPECT_EQ(co_await channel.Read(0, absl::MakeSpan(bytes)), IoResult::Error(EIO));
    EXPECT_EQ(co_await channel.Write(5000, absl::MakeConstSpan(ones).subspan(0, 2), WriteFlags::kNone),
              IoResult::Error(EIO));
    EXPECT_EQ(co_await channel.Zero(5000, 2, ZeroFlags::kNone), IoResult::Error(EIO));
    EXPECT_EQ(co_await channel.Discard(5000, 2), IoResult::Error(EIO));
    std::vector<Extent> extents;
    EXPECT_EQ(co_await channel.Extents(5000, 2, &extents), IoResult::Error(EIO));
    EXPECT_TRUE(device->Resize(10000).ok());
    EXPECT_EQ(co_await channel.Read(0, absl::MakeSpan(bytes)), IoResult::Ok());
    EXPECT_TRUE(std::all_of(bytes.begin(), bytes.begin() + 5001, [](uint8_t b) { return b == 1; }));
    EXPECT_TRUE(std::all_of(bytes.begin() + 5001, bytes.end(), [](uint8_t b) { return b == 0; }));
  });
  EXPECT_EQ(image.size(), 10000u);
  EXPECT_EQ(device->Resize(0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(device->Resize(uint64_t{1} << 63).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(device->size(), 10000u);
}

// Writes that are under way while the image shrinks must not make the file longer again.
TEST_P(RawModesTest, ShrinkingUnderWritesLeavesTheSizeRight) {
  TemporaryImage image(directory(), kMiB);
  std::shared_ptr<RawDevice> device = OpenOk(image.path(), options());
  ASSERT_NE(device, nullptr);
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    Reactor& reactor = reactors_->at(1);
    OnChannel(*device, reactor, [&](BlockChannel& channel) -> Task<void> {
      const std::vector<uint8_t> bytes(1000, 1);
      while (!stop) {
        Gate gate(reactor);
        for (int i = 0; i < 32; ++i) {
          Spawn([](BlockChannel& to, uint64_t at, const std::vector<uint8_t>* data,
                   Gate::Holder) -> Task<void> {
            const IoResult result = co_await to.Write(at, *data, WriteFlags::kNone);
            EXPECT_TRUE(result.ok() || result.error == EIO) << result.error;
          }(channel, kMiB - 1000 * (static_cast<uint64_t>(i) + 1), &bytes, gate.Enter()));
        }
        co_await gate.Close();
      }
    });
  });
  for (int i = 0; i < 50; ++i) {
    EXPECT_TRUE(device->Resize(kMiB / 2 + 3).ok());
    EXPECT_TRUE(device->Resize(kMiB).ok());
  }
  EXPECT_TRUE(device->Resize(kMiB / 2 + 3).ok());
  stop = true;
  writer.join();
  EXPECT_EQ(image.size(), kMiB / 2 + 3);
}

TEST_P(RawModesTest, AFileCutUnderneathGivesEio) {
  TemporaryImage image(directory(), kMiB);
  std::shared_ptr<RawDevice> device = OpenOk(image.path(), options());
  ASSERT_NE(device, nullptr);
  ASSERT_EQ(truncate(image.path().c_str(), 1000), 0);
  OnChannel(*device, reactors_->at(0), [&](BlockChannel& channel) -> Task<void> {
    std::vector<uint8_t> bytes(8192);
    EXPECT_EQ(co_await channel.Read(kMiB / 2, absl::MakeSpan(bytes)), IoResult::Error(EIO));
    EXPECT_EQ(co_await channel.Read(0, absl::MakeSpan(bytes)), IoResult::Error(EIO));
    EXPECT_EQ(co_await channel.Read(7, absl::MakeSpan(bytes).subspan(0, 5000)), IoResult::Error(EIO));
    std::vector<Extent> extents;
    EXPECT_EQ(co_await channel.Extents(0, kMiB, &extents), IoResult::Ok());
  });
}

TEST_P(RawModesTest, DiscardGivesSpaceBackOnlyWhereItIsTold) {
  for (const DiscardMode mode : {DiscardMode::kUnmap, DiscardMode::kIgnore}) {
    TemporaryImage image(directory(), kMiB);
    RawOptions how = options();
    how.discard = mode;
    std::shared_ptr<RawDevice> device = OpenOk(image.path(), how);
    ASSERT_NE(device, nullptr);
    EXPECT_EQ(device->traits().can_discard, mode == DiscardMode::kUnmap);
    OnChannel(*device, reactors_->at(0), [&](BlockChannel& channel) -> Task<void> {
      const std::vector<uint8_t> ones(kMiB, 1);
      EXPECT_EQ(co_await channel.Write(0, ones, WriteFlags::kFua), IoResult::Ok());
      EXPECT_EQ(co_await channel.Flush(), IoResult::Ok());
      EXPECT_EQ(co_await channel.Discard(0, kMiB), IoResult::Ok());
    });
    if (options().cache == CacheMode::kUnsafe) (void)!system(("sync " + image.path()).c_str());
    EXPECT_EQ(image.allocated() < kMiB, mode == DiscardMode::kUnmap) << image.allocated();
  }
}

TEST_P(RawModesTest, ZeroKeepsItsSpaceWhereItMust) {
  TemporaryImage image(directory(), kMiB);
  std::shared_ptr<RawDevice> device = OpenOk(image.path(), options());
  ASSERT_NE(device, nullptr);
  EXPECT_TRUE(device->traits().fast_zero);
  OnChannel(*device, reactors_->at(0), [&](BlockChannel& channel) -> Task<void> {
    const std::vector<uint8_t> ones(kMiB, 1);
    EXPECT_EQ(co_await channel.Write(0, ones, WriteFlags::kNone), IoResult::Ok());
    const IoResult fast = co_await channel.Zero(0, kMiB, ZeroFlags::kNoUnmap | ZeroFlags::kFastOnly);
    // tmpfs would have to write; ext4 marks its extents.
    EXPECT_EQ(fast.error, std::get<0>(GetParam()) ? ENOTSUP : 0);
    EXPECT_EQ(co_await channel.Zero(0, kMiB, ZeroFlags::kNoUnmap | ZeroFlags::kFua), IoResult::Ok());
    EXPECT_GE(image.allocated(), kMiB);
    EXPECT_EQ(co_await channel.Zero(0, kMiB, ZeroFlags::kFastOnly), IoResult::Ok());
    EXPECT_LT(image.allocated(), kMiB);
  });
}

class RawDeviceTest : public testing::Test {
 protected:
  absl::Status OpenError(const std::string& path, const RawOptions& options = {}) {
    return RawDevice::Open(path, options).status();
  }
  std::unique_ptr<ReactorPool> reactors_ = MakeReactors(1);
};

TEST_F(RawDeviceTest, WhatIsNoImageIsRefusedWithItsReason) {
  const std::string directory = testing::TempDir() + "/not-images";
  ASSERT_EQ(mkdir(directory.c_str(), 0755), 0);
  const std::string fifo = directory + "/fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // A socket's path is short; TEST_TMPDIR need not be.
  const std::string socket_path = directory + "/socket";
  const UniqueFd directory_fd(open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  const std::string short_path = "/proc/self/fd/" + std::to_string(directory_fd.get()) + "/socket";
  std::strncpy(address.sun_path, short_path.c_str(), sizeof(address.sun_path) - 1);
  UniqueFd socket_fd(socket(AF_UNIX, SOCK_STREAM, 0));
  ASSERT_EQ(bind(socket_fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  TemporaryImage empty(directory, 0);

  for (const bool read_only : {false, true}) {
    RawOptions options;
    options.read_only = read_only;
    const auto expect = [&](const std::string& path, absl::StatusCode code, const char* text) {
      const absl::Status status = OpenError(path, options);
      EXPECT_EQ(status.code(), code) << status;
      EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr(text)));
    };
    expect("", absl::StatusCode::kInvalidArgument, "empty");
    expect(directory + "/nothing", absl::StatusCode::kNotFound, "No such file");
    expect(directory, absl::StatusCode::kInvalidArgument, "is a directory");
    expect(fifo, absl::StatusCode::kInvalidArgument, "is a fifo");
    expect(socket_path, absl::StatusCode::kInvalidArgument, "is a socket");
    expect("/dev/null", absl::StatusCode::kInvalidArgument, "is a character device");
    expect(empty.path(), absl::StatusCode::kInvalidArgument, "is empty");
    expect(directory + "/" + std::string(5000, 'x'), absl::StatusCode::kInvalidArgument, "too long");
  }
  unlink(socket_path.c_str());
  unlink(fifo.c_str());
}

TEST_F(RawDeviceTest, ExtentsFollowEveryChange) {
  TemporaryImage image(DiskDirectory(), 16 * kMiB);
  std::shared_ptr<RawDevice> device = OpenOk(image.path());
  ASSERT_NE(device, nullptr);
  OnChannel(*device, reactors_->at(0), [&](BlockChannel& channel) -> Task<void> {
    std::vector<Extent> extents;
    const auto look = [&]() -> Task<void> {
      extents.clear();
      EXPECT_EQ(co_await channel.Extents(0, 16 * kMiB, &extents), IoResult::Ok());
    };
    const Extent hole = {16 * kMiB, false, true};
    co_await look();
    EXPECT_EQ(extents, std::vector<Extent>{hole});
    co_await look();  // From what is remembered.
    EXPECT_EQ(extents, std::vector<Extent>{hole});

    const std::vector<uint8_t> ones(kMiB, 1);
    EXPECT_EQ(co_await channel.Write(4 * kMiB, ones, WriteFlags::kNone), IoResult::Ok());
    const std::vector<Extent> written = {
        {4 * kMiB, false, true}, {kMiB, true, false}, {11 * kMiB, false, true}};
    co_await look();
    EXPECT_EQ(extents, written);
    co_await look();
    EXPECT_EQ(extents, written);

    EXPECT_EQ(co_await channel.Discard(4 * kMiB, kMiB), IoResult::Ok());
    co_await look();
    EXPECT_EQ(extents, std::vector<Extent>{hole});

    EXPECT_TRUE(device->Resize(8 * kMiB).ok());
    EXPECT_EQ(co_await channel.Write(7 * kMiB, ones, WriteFlags::kNone), IoResult::Ok());
    EXPECT_TRUE(device->Resize(16 * kMiB).ok());
    const std::vector<Extent> grown = {{7 * kMiB, false, true}, {kMiB, true, false}, {8 * kMiB, false, true}};
    co_await look();
    EXPECT_EQ(extents, grown);
  });
}

// What was remembered of the part that is cut off is not true of the part that grows in its place.
TEST_F(RawDeviceTest, ExtentsBehindTheEndAreForgotten) {
  TemporaryImage image(DiskDirectory(), 16 * kMiB);
  std::shared_ptr<RawDevice> device = OpenOk(image.path());
  ASSERT_NE(device, nullptr);
  OnChannel(*device, reactors_->at(0), [&](BlockChannel& channel) -> Task<void> {
    const std::vector<uint8_t> ones(4 * kMiB, 1);
    EXPECT_EQ(co_await channel.Write(12 * kMiB, ones, WriteFlags::kNone), IoResult::Ok());
    std::vector<Extent> extents;
    EXPECT_EQ(co_await channel.Extents(0, 16 * kMiB, &extents), IoResult::Ok());
    EXPECT_EQ(extents, (std::vector<Extent>{{12 * kMiB, false, true}, {4 * kMiB, true, false}}));
    EXPECT_TRUE(device->Resize(8 * kMiB).ok());
    EXPECT_TRUE(device->Resize(16 * kMiB).ok());
    extents.clear();
    EXPECT_EQ(co_await channel.Extents(0, 16 * kMiB, &extents), IoResult::Ok());
    EXPECT_EQ(extents, (std::vector<Extent>{{16 * kMiB, false, true}}));
  });
}

// True where some of the file is in the page cache alone: ext4, xfs and btrfs choose its place on the disk
// when it is written there, and say so. A file system that chooses earlier never says it.
bool HasUnwrittenData(const std::string& path) {
  constexpr uint32_t kMost = 64;
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(fd);
  std::vector<uint64_t> space((sizeof(fiemap) + kMost * sizeof(fiemap_extent)) / sizeof(uint64_t));
  auto* map = reinterpret_cast<fiemap*>(space.data());
  map->fm_length = FIEMAP_MAX_OFFSET;
  map->fm_extent_count = kMost;
  if (ioctl(fd.get(), FS_IOC_FIEMAP, map) != 0) return false;
  for (uint32_t i = 0; i < map->fm_mapped_extents; ++i) {
    if ((map->fm_extents[i].fe_flags & FIEMAP_EXTENT_DELALLOC) != 0) return true;
  }
  return false;
}

// The disk itself is asked in tests/kernel:raw_disk_test.
TEST_F(RawDeviceTest, WhatIsDurableHasLeftThePageCache) {
  for (const CacheMode mode : {CacheMode::kWriteback, CacheMode::kWritethrough}) {
    TemporaryImage image(DiskDirectory(), 16 * kMiB);
    RawOptions options;
    options.cache = mode;
    std::shared_ptr<RawDevice> device = OpenOk(image.path(), options);
    ASSERT_NE(device, nullptr);
    OnChannel(*device, reactors_->at(0), [&](BlockChannel& channel) -> Task<void> {
      const std::vector<uint8_t> ones(100'000, 1);
      EXPECT_EQ(co_await channel.Write(0, ones, WriteFlags::kNone), IoResult::Ok());
      if (mode == CacheMode::kWriteback) {
        EXPECT_EQ(co_await channel.Flush(), IoResult::Ok());
      }
      EXPECT_FALSE(HasUnwrittenData(image.path())) << CacheName(mode) << ": a write, a flush";
      EXPECT_EQ(co_await channel.Write(5 * kMiB + 1, ones, WriteFlags::kFua), IoResult::Ok());
      EXPECT_FALSE(HasUnwrittenData(image.path())) << CacheName(mode) << ": a write with FUA";
      // A hole has nothing to write; what makes it durable is a flush, which writes its neighbours.
      EXPECT_EQ(co_await channel.Write(12 * kMiB, ones, WriteFlags::kNone), IoResult::Ok());
      EXPECT_EQ(co_await channel.Zero(9 * kMiB + 1, 100'000, ZeroFlags::kFua), IoResult::Ok());
      EXPECT_FALSE(HasUnwrittenData(image.path())) << CacheName(mode) << ": a zero with FUA";
    });
  }
}

TEST_F(RawDeviceTest, ManySmallExtentsComeInPieces) {
  constexpr uint64_t kPieces = 1000;
  TemporaryImage image(MemoryDirectory(), kPieces * 8192);
  std::shared_ptr<RawDevice> device = OpenOk(image.path());
  ASSERT_NE(device, nullptr);
  OnChannel(*device, reactors_->at(0), [&](BlockChannel& channel) -> Task<void> {
    const std::vector<uint8_t> ones(4096, 1);
    for (uint64_t i = 0; i < kPieces; ++i) {
      EXPECT_EQ(co_await channel.Write(i * 8192, ones, WriteFlags::kNone), IoResult::Ok());
    }
    std::vector<Extent> extents;
    uint64_t position = 0;
    int calls = 0;
    while (position < device->size()) {
      std::vector<Extent> some;
      EXPECT_EQ(co_await channel.Extents(position, device->size() - position, &some), IoResult::Ok());
      for (const Extent& extent : some) {
        position += extent.length;
        extents.push_back(extent);
      }
      if (++calls > 100) break;
    }
    EXPECT_EQ(position, device->size());
    EXPECT_EQ(extents.size(), 2 * kPieces);
    EXPECT_GT(calls, 1);
  });
}

TEST_F(RawDeviceTest, ReadOnly) {
  TemporaryImage image(DiskDirectory(), kMiB + 1);
  for (const CacheMode mode : {CacheMode::kWriteback, CacheMode::kNone}) {
    RawOptions options;
    options.read_only = true;
    options.cache = mode;
    std::shared_ptr<RawDevice> device = OpenOk(image.path(), options);
    ASSERT_NE(device, nullptr);
    EXPECT_TRUE(device->traits().read_only);
    EXPECT_FALSE(device->traits().resizable);
    EXPECT_FALSE(device->traits().can_discard);
    EXPECT_EQ(device->Resize(5).code(), absl::StatusCode::kFailedPrecondition);
    OnChannel(*device, reactors_->at(0), [&](BlockChannel& channel) -> Task<void> {
      std::vector<uint8_t> bytes(kMiB + 1, 1);
      EXPECT_EQ(co_await channel.Read(0, absl::MakeSpan(bytes)), IoResult::Ok());
      EXPECT_EQ(bytes.back(), 0);
      EXPECT_EQ(co_await channel.Flush(), IoResult::Ok());
    });
  }
}

}  // namespace
}  // namespace berth
