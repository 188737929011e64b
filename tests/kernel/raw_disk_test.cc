// Raw images that are disks: what is asked of the disk itself, seen at the disk. And images on file systems
// that are full.

#include <fcntl.h>
#include <linux/blkpg.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "image/block/error_reason.h"
#include "image/io/reactor_pool.h"
#include "image/io/unique_fd.h"
#include "image/raw/raw_device.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/kernel/test_disk.h"

namespace berth {
namespace {

constexpr int kDiskMiB = 8;
constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kSectorsPerMiB = kMiB / 512;

class RawDiskTest : public testing::TestWithParam<CacheMode> {
 protected:
  void SetUp() override {
    auto reactors = ReactorPool::Create(1);
    ASSERT_TRUE(reactors.ok()) << reactors.status();
    reactors_ = *std::move(reactors);
  }
  Reactor& reactor() { return reactors_->at(0); }

  static RawOptions WithCache(CacheMode cache) {
    RawOptions options;
    options.cache = cache;
    return options;
  }
  static std::shared_ptr<RawDevice> OpenOk(const std::string& path, const RawOptions& options) {
    auto device = RawDevice::Open(path, options);
    EXPECT_TRUE(device.ok()) << device.status();
    return device.ok() ? *std::move(device) : nullptr;
  }

  std::unique_ptr<ReactorPool> reactors_;
};

INSTANTIATE_TEST_SUITE_P(Modes, RawDiskTest, testing::Values(CacheMode::kWriteback, CacheMode::kNone),
                         [](const auto& info) {
                           return std::string(info.param == CacheMode::kNone ? "Direct" : "Cached");
                         });

TEST_P(RawDiskTest, DiscardAndZeroGiveSpaceBackOnlyWhereTheyMay) {
  const TestDisk disk = TestDisk::Scsi(kDiskMiB);
  std::shared_ptr<RawDevice> device = OpenOk(disk.path(), WithCache(GetParam()));
  ASSERT_NE(device, nullptr);
  EXPECT_TRUE(device->traits().can_discard);
  EXPECT_TRUE(device->traits().fast_zero);
  EXPECT_EQ(disk.mapped_sectors(), 0u);
  BlockingChannel channel(*device, reactor());
  const std::vector<uint8_t> ones(kDiskMiB * kMiB, 1);
  ASSERT_EQ(channel.Write(0, ones), IoResult::Ok());
  ASSERT_EQ(channel.Flush(), IoResult::Ok());
  ASSERT_EQ(disk.mapped_sectors(), kDiskMiB * kSectorsPerMiB);

  // Parts of sectors keep theirs.
  EXPECT_EQ(channel.Discard(kMiB - 1, kMiB + 2), IoResult::Ok());
  EXPECT_EQ(disk.mapped_sectors(), 7 * kSectorsPerMiB);
  EXPECT_EQ(channel.Read(kMiB - 1, 1).at(0), 1);
  EXPECT_EQ(channel.Read(2 * kMiB, 1).at(0), 1);

  EXPECT_EQ(channel.Zero(2 * kMiB, kMiB, ZeroFlags::kNoUnmap), IoResult::Ok());
  EXPECT_EQ(channel.Flush(), IoResult::Ok());
  EXPECT_EQ(disk.mapped_sectors(), 7 * kSectorsPerMiB);
  EXPECT_EQ(channel.Zero(4 * kMiB, kMiB, ZeroFlags::kFastOnly), IoResult::Ok());
  EXPECT_EQ(disk.mapped_sectors(), 6 * kSectorsPerMiB);
  const std::vector<uint8_t> zeroes(kMiB);
  EXPECT_TRUE(channel.Read(2 * kMiB, kMiB) == zeroes);
  EXPECT_TRUE(channel.Read(4 * kMiB, kMiB) == zeroes);
  EXPECT_EQ(channel.Read(3 * kMiB, 1).at(0), 1);
}

TEST_P(RawDiskTest, IgnoredDiscardsKeepTheSpace) {
  const TestDisk disk = TestDisk::Scsi(kDiskMiB);
  RawOptions options = WithCache(GetParam());
  options.discard = DiscardMode::kIgnore;
  std::shared_ptr<RawDevice> device = OpenOk(disk.path(), options);
  ASSERT_NE(device, nullptr);
  EXPECT_FALSE(device->traits().can_discard);
  BlockingChannel channel(*device, reactor());
  const std::vector<uint8_t> ones(kMiB, 1);
  ASSERT_EQ(channel.Write(0, ones), IoResult::Ok());
  ASSERT_EQ(channel.Flush(), IoResult::Ok());
  EXPECT_EQ(channel.Discard(0, kMiB), IoResult::Ok());
  EXPECT_TRUE(channel.Read(0, kMiB) == ones);
  EXPECT_EQ(channel.Zero(0, kMiB), IoResult::Ok());
  ASSERT_EQ(channel.Flush(), IoResult::Ok());
  EXPECT_EQ(disk.mapped_sectors(), kSectorsPerMiB);
  EXPECT_TRUE(channel.Read(0, kMiB) == std::vector<uint8_t>(kMiB));
}

TEST_P(RawDiskTest, WhatTheDiskCannotIsSaid) {
  const TestDisk disk = TestDisk::Plain(kDiskMiB);
  std::shared_ptr<RawDevice> device = OpenOk(disk.path(), WithCache(GetParam()));
  ASSERT_NE(device, nullptr);
  EXPECT_FALSE(device->traits().can_discard);
  EXPECT_FALSE(device->traits().fast_zero);
  EXPECT_FALSE(device->traits().resizable);
  EXPECT_EQ(device->traits().preferred_alignment, 4096u);
  BlockingChannel channel(*device, reactor());
  const std::vector<uint8_t> ones(kMiB, 1);
  ASSERT_EQ(channel.Write(0, ones), IoResult::Ok());
  EXPECT_EQ(channel.Discard(0, kMiB), IoResult::Ok());
  for (const ZeroFlags flags : {ZeroFlags::kFastOnly, ZeroFlags::kFastOnly | ZeroFlags::kNoUnmap}) {
    EXPECT_EQ(channel.Zero(0, kMiB, flags), IoResult::Error(ENOTSUP));
  }
  EXPECT_TRUE(channel.Read(0, kMiB) == ones);
  EXPECT_EQ(channel.Zero(1, kMiB - 1), IoResult::Ok());
  EXPECT_EQ(channel.Read(0, 1).at(0), 1);
  EXPECT_TRUE(channel.Read(1, kMiB - 1) == std::vector<uint8_t>(kMiB - 1));
}

TEST_P(RawDiskTest, SizeRotationAndPartitions) {
  const TestDisk disk = TestDisk::Scsi(kDiskMiB);
  const UniqueFd whole(open(disk.path().c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(whole);
  blkpg_partition part = {};
  part.pno = 1;
  part.start = kMiB;
  part.length = 2 * kMiB + 512;
  blkpg_ioctl_arg argument = {};
  argument.op = BLKPG_ADD_PARTITION;
  argument.datalen = sizeof(part);
  argument.data = &part;
  ASSERT_EQ(ioctl(whole.get(), BLKPG, &argument), 0);

  for (const bool rotational : {false, true}) {
    std::ofstream(disk.queue("rotational")) << rotational;
    for (const std::string& path : {disk.path(), disk.path() + "1"}) {
      SCOPED_TRACE(path);
      std::shared_ptr<RawDevice> device = OpenOk(path, WithCache(GetParam()));
      ASSERT_NE(device, nullptr);
      EXPECT_EQ(device->size(), path == disk.path() ? kDiskMiB * kMiB : 2 * kMiB + 512);
      EXPECT_EQ(device->traits().rotational, rotational);
      EXPECT_TRUE(device->traits().can_discard);
      EXPECT_FALSE(device->traits().resizable);
      const absl::Status status = device->Resize(kMiB);
      EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_NE(status.message().find("block device"), absl::string_view::npos) << status;
    }
  }

  // What is written to a partition lies where it does.
  {
    std::shared_ptr<RawDevice> device = OpenOk(disk.path() + "1", WithCache(GetParam()));
    ASSERT_NE(device, nullptr);
    BlockingChannel channel(*device, reactor());
    const std::vector<uint8_t> twos(1000, 2);
    EXPECT_EQ(channel.Write(2 * kMiB + 512 - 1000, twos, WriteFlags::kFua), IoResult::Ok());
    EXPECT_EQ(channel.Write(2 * kMiB, twos), IoResult::Error(EIO));
  }
  std::vector<uint8_t> bytes(1000);
  ASSERT_EQ(ioctl(whole.get(), BLKFLSBUF, 0), 0);
  ASSERT_EQ(pread(whole.get(), bytes.data(), bytes.size(), 3 * kMiB + 512 - 1000), 1000);
  EXPECT_EQ(bytes, std::vector<uint8_t>(1000, 2));
}

TEST_P(RawDiskTest, IsLockedAsAFileIs) {
  const TestDisk disk = TestDisk::Scsi(kDiskMiB);
  RawOptions reading = WithCache(GetParam());
  reading.read_only = true;
  std::shared_ptr<RawDevice> writer = OpenOk(disk.path(), WithCache(GetParam()));
  ASSERT_NE(writer, nullptr);
  for (const RawOptions& options : {WithCache(GetParam()), reading}) {
    const absl::Status status = RawDevice::Open(disk.path(), options).status();
    EXPECT_EQ(ErrorReason(status), kReasonImageLocked) << status;
  }
  const std::string image = absl::StrCat("qemu-io -f raw -c quit ", disk.path(), " >/dev/null 2>&1");
  EXPECT_NE(system(image.c_str()), 0) << "qemu took a disk that is served";
  writer.reset();
  EXPECT_EQ(system(image.c_str()), 0);
  std::shared_ptr<RawDevice> one = OpenOk(disk.path(), reading);
  std::shared_ptr<RawDevice> two = OpenOk(disk.path(), reading);
  EXPECT_FALSE(RawDevice::Open(disk.path(), {}).ok());
}

TEST_P(RawDiskTest, AReadOnlyDiskIsReadAndNotWritten) {
  const TestDisk disk = TestDisk::Scsi(kDiskMiB);
  ASSERT_TRUE(Shell("blockdev --setro " + disk.path()));
  const absl::Status status = RawDevice::Open(disk.path(), WithCache(GetParam())).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
  EXPECT_NE(status.message().find("read-only"), absl::string_view::npos) << status;
  RawOptions reading = WithCache(GetParam());
  reading.read_only = true;
  std::shared_ptr<RawDevice> device = OpenOk(disk.path(), reading);
  ASSERT_NE(device, nullptr);
  EXPECT_TRUE(device->traits().read_only);
  EXPECT_FALSE(device->traits().can_discard);
  BlockingChannel channel(*device, reactor());
  EXPECT_EQ(channel.Read(0, kMiB).size(), kMiB);
}

// Does `change` and returns how many flushes the disk saw for it.
template <typename Change>
uint64_t Flushes(const TestDisk& disk, Change change) {
  const uint64_t before = disk.flushes();
  EXPECT_EQ(change(), IoResult::Ok());
  return disk.flushes() - before;
}

struct Durability {
  CacheMode cache;
  bool changes;   // Every change is durable when it completes.
  bool requests;  // Flush and FUA are honoured.
};
constexpr Durability kDurabilities[] = {
    {CacheMode::kWriteback, false, true}, {CacheMode::kWritethrough, true, true},
    {CacheMode::kNone, false, true},      {CacheMode::kDirectsync, true, true},
    {CacheMode::kUnsafe, false, false},
};

// The disk has a volatile cache and no FUA of its own, so that each durable write has to end in a flush of
// it.
void ExpectFlushes(const TestDisk& disk, const std::string& path, Reactor& reactor) {
  const std::vector<uint8_t> data(8192, 3);
  for (const Durability& durability : kDurabilities) {
    RawOptions options;
    options.cache = durability.cache;
    auto device = RawDevice::Open(path, options);
    ASSERT_TRUE(device.ok()) << device.status();
    BlockingChannel channel(**device, reactor);
    for (const uint64_t offset : {uint64_t{0}, uint64_t{100}}) {  // On blocks, and not.
      SCOPED_TRACE(absl::StrCat("mode ", static_cast<int>(durability.cache), " offset ", offset));
      ASSERT_TRUE(Shell("sync"));
      EXPECT_EQ(Flushes(disk, [&] { return channel.Write(offset, data); }) > 0, durability.changes);
      EXPECT_EQ(Flushes(disk, [&] { return channel.Write(offset, data, WriteFlags::kFua); }) > 0,
                durability.requests);
      EXPECT_EQ(Flushes(disk, [&] { return channel.Zero(offset, 8192); }) > 0, durability.changes);
      EXPECT_EQ(Flushes(disk, [&] { return channel.Zero(offset, 8192, ZeroFlags::kFua); }) > 0,
                durability.requests);
      EXPECT_EQ(Flushes(disk, [&] { return channel.Write(offset, data); }) > 0, durability.changes);
      EXPECT_EQ(Flushes(disk, [&] { return channel.Flush(); }) > 0, durability.requests);
    }
  }
}

class DurabilityTest : public RawDiskTest {};

TEST_F(DurabilityTest, OfADiskIsSeenAtTheDisk) {
  const TestDisk disk = TestDisk::Plain(kDiskMiB);
  ASSERT_EQ(SysfsWord(disk.queue("write_cache")), "write");
  ASSERT_EQ(SysfsWord(disk.queue("fua")), "0");
  ExpectFlushes(disk, disk.path(), reactor());
}

// A file system on a disk, as long as the object lives.
class Mount {
 public:
  Mount(const std::string& make, const std::string& type, const std::string& device) {
    EXPECT_NE(mkdtemp(path_.data()), nullptr);
    if (!make.empty()) Shell(make + " " + device);
    EXPECT_EQ(mount(device.c_str(), path_.c_str(), type.c_str(), 0, type == "tmpfs" ? "size=1m" : ""), 0)
        << type << " " << device;
  }
  ~Mount() {
    // A worker of the ring lets go of its file shortly after the request is complete.
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    int error = EBUSY;
    while (error == EBUSY && absl::Now() < deadline) {
      error = umount(path_.c_str()) == 0 ? 0 : errno;
      if (error == EBUSY) absl::SleepFor(absl::Milliseconds(1));
    }
    EXPECT_EQ(error, 0) << strerror(error);
    EXPECT_EQ(rmdir(path_.c_str()), 0);
  }
  std::string MakeImage(uint64_t size) const {
    const std::string image = path_ + "/image";
    const UniqueFd fd(open(image.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(size)), 0);
    return image;
  }

 private:
  std::string path_ = "/tmp/mounted-XXXXXX";
};

TEST_F(DurabilityTest, OfAFileIsSeenAtTheDiskBelow) {
  const TestDisk disk = TestDisk::Plain(kDiskMiB);
  // Without a journal nothing flushes but who asked.
  const Mount file_system("mkfs.ext4 -q -O ^has_journal", "ext4", disk.path());
  const std::string path = file_system.MakeImage(kMiB);
  ExpectFlushes(disk, path, reactor());
}

// The image is larger than what lies below it.
void ExpectFullDisk(const std::string& path, CacheMode cache, Reactor& reactor) {
  RawOptions options;
  options.cache = cache;
  auto device = RawDevice::Open(path, options);
  ASSERT_TRUE(device.ok()) << device.status();
  BlockingChannel channel(**device, reactor);
  const std::vector<uint8_t> data(64 << 10, 4);
  uint64_t offset = 0;
  IoResult result;
  for (; offset < (*device)->size(); offset += data.size()) {
    result = channel.Write(offset, data);
    if (!result.ok()) break;
  }
  ASSERT_EQ(result, IoResult::Error(ENOSPC)) << offset;
  ASSERT_GT(offset, 0u);
  EXPECT_EQ(channel.Write(offset + kMiB, data, WriteFlags::kFua), IoResult::Error(ENOSPC));
  EXPECT_EQ(channel.Zero(offset + kMiB, kMiB, ZeroFlags::kNoUnmap), IoResult::Error(ENOSPC));
  // What was written is there, may be written again, and can be made durable; holes read as zeroes.
  EXPECT_TRUE(channel.Read(0, data.size()) == data);
  EXPECT_TRUE(channel.Read(offset + kMiB, data.size()) == std::vector<uint8_t>(data.size()));
  EXPECT_EQ(channel.Write(0, data, WriteFlags::kFua), IoResult::Ok());
  EXPECT_EQ(channel.Flush(), IoResult::Ok());
  // Space that is given back serves again.
  EXPECT_EQ(channel.Discard(0, offset), IoResult::Ok());
  EXPECT_EQ(channel.Write(offset + kMiB, data, WriteFlags::kFua), IoResult::Ok());
  EXPECT_TRUE(channel.Read(offset + kMiB, data.size()) == data);
}

class FullDiskTest : public RawDiskTest {};

INSTANTIATE_TEST_SUITE_P(Modes, FullDiskTest,
                         testing::Values(CacheMode::kWriteback, CacheMode::kWritethrough, CacheMode::kNone,
                                         CacheMode::kDirectsync, CacheMode::kUnsafe));

TEST_P(FullDiskTest, OnTmpfs) {
  const Mount file_system("", "tmpfs", "none");
  ExpectFullDisk(file_system.MakeImage(16 * kMiB), GetParam(), reactor());
}

TEST_P(FullDiskTest, OnExt4) {
  const TestDisk disk = TestDisk::Plain(kDiskMiB);
  const Mount file_system("mkfs.ext4 -q -m 0", "ext4", disk.path());
  ExpectFullDisk(file_system.MakeImage(16 * kMiB), GetParam(), reactor());
}

}  // namespace
}  // namespace berth
