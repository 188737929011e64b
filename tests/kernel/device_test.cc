// What a device of berthd's does and refuses: partitions, flushes, trims, writes to a read-only one, and who
// may have it.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "image/io/unique_fd.h"
#include "tests/kernel/disk_server.h"

namespace berth::kernel_test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kSize = 32 * kMebibyte;
constexpr size_t kBlock = 4096;

std::string Berthctl() {
  return (std::filesystem::path(control::BerthdPath()).parent_path() / "berthctl/berthctl").string();
}

class DeviceTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(server_.Start()); }
  void TearDown() override { EXPECT_THAT(UsedDevices(), IsEmpty()); }

  void ExpectRefused(const std::string& reason, const std::string& text) {
    const grpc::Status refused = server_.Detach("disk");
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_EQ(control::ReasonOf(refused), reason) << refused.error_message();
    EXPECT_THAT(refused.error_message(), HasSubstr(text));
  }

  DiskServer server_;
};

// ---- Partitions.

class PartitionTest : public DeviceTest, public testing::WithParamInterface<const char*> {};

TEST_P(PartitionTest, AreThereWhenAttachReturns) {
  ASSERT_TRUE(server_.CreateRawImage("disk.raw", kSize).ok());
  Shell(absl::StrCat("printf 'label: ", GetParam(), "\\nsize=8MiB\\nsize=16MiB\\n' | sfdisk -q ",
                     server_.Image("disk")));
  ASSERT_TRUE(server_.CreateRawExport("disk", "disk.raw").ok());
  v1::Attachment attachment;
  ASSERT_TRUE(server_.Attach("disk", "disk", &attachment).ok());
  const std::string device = attachment.device();
  ASSERT_THAT(attachment.partitions(), ElementsAre(device + "p1", device + "p2"));

  // At once, and each where the table says.
  EXPECT_EQ(WriteAt(device + "p1", 0, Pattern(1)), 0);
  EXPECT_EQ(ContentAt(server_.Image("disk"), kMebibyte, kBlock), Pattern(1));
  EXPECT_EQ(SizeOf(device + "p1"), 8 * kMebibyte);
  EXPECT_EQ(SizeOf(device + "p2"), 16 * kMebibyte);
  Shell(absl::StrCat("mkfs.ext4 -q ", device, "p2"));
  {
    const Mount mount(device + "p2", "ext4", server_.Path("mnt"));
    ExpectRefused("DEVICE_MOUNTED", mount.folder());
  }
  server_.DetachDisk("disk", device);
  EXPECT_NE(access((device + "p1").c_str(), F_OK), 0);
}

INSTANTIATE_TEST_SUITE_P(Tables, PartitionTest, testing::Values("dos", "gpt"),
                         [](const auto& info) { return std::string(info.param); });

// ---- What reaches the image.

TEST_F(DeviceTest, AFlushReachesTheImage) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk");
  const uint64_t before = server_.Statistics("disk", v1::IO_OPERATION_FLUSH).completed();
  {
    const UniqueFd fd(open(device.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_TRUE(fd);
    const std::string block = Pattern(1);
    // Through the page cache: only the fsync makes a write of it.
    ASSERT_EQ(pwrite(fd.get(), block.data(), kBlock, kMebibyte), static_cast<ssize_t>(kBlock));
    ASSERT_EQ(fsync(fd.get()), 0);
    EXPECT_GT(server_.Statistics("disk", v1::IO_OPERATION_FLUSH).completed(), before);
    EXPECT_EQ(server_.Stop(SIGKILL), 128 + SIGKILL);
  }
  EXPECT_EQ(ContentAt(server_.Image("disk"), kMebibyte, kBlock), Pattern(1));
  ASSERT_TRUE(server_.Start());
  server_.DetachDisk("disk", device);
}

// A disk under the image: a loop device that counts the flushes it gets, with a file system without a
// journal, which sends none on its own.
class StableStorageTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    disk_ = server_.Path("below.img");
    Shell(absl::StrCat("truncate -s 64M ", disk_));
    loop_ = OutputOf(absl::StrCat("losetup --find --show ", disk_));
    // Else a thread of the kernel makes the inode tables some time later, with a flush for each.
    Shell(absl::StrCat("mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=0 ", loop_));
    below_ = std::make_unique<Mount>(loop_, "ext4", server_.Path("below"), MS_NOATIME);
  }
  void TearDown() override {
    DeviceTest::TearDown();
    server_.Stop();
    below_.reset();
    Shell(absl::StrCat("losetup -d ", loop_));
  }

  std::string Attach(v1::CacheMode cache) {
    EXPECT_TRUE(server_.CreateRawImage("below/disk.raw", kSize).ok());
    // Its metadata is there for good: from here on only data is written.
    Shell(absl::StrCat("dd if=/dev/zero bs=1M count=32 conv=notrunc,fsync of=",
                       server_.Path("below/disk.raw")));
    v1::ExportSpec spec = server_.SpecOf("below/disk");
    spec.mutable_image()->set_cache(cache);
    const grpc::Status created = server_.CreateExport("disk", spec);
    EXPECT_TRUE(created.ok()) << created.error_message();
    return server_.AttachDisk("disk");
  }

  // Of the disk below.
  uint64_t Flushes() const {
    return std::stoull(OutputOf(absl::StrCat("awk '{print $16}' /sys/block/", NameOf(loop_), "/stat")));
  }

  // What would be there after a power failure now, at `offset` of the image.
  std::string AfterPowerFailure(uint64_t offset) {
    const std::string copy = server_.Path("copy.img");
    Shell(absl::StrCat("cp --sparse=always ", disk_, " ", copy, " && losetup --read-only --find --show ",
                       copy, " >", server_.Path("copy.loop")));
    const std::string loop = FirstWord(server_.Path("copy.loop"));
    std::string content;
    {
      const Mount mount(loop, "ext4", server_.Path("copy"), MS_RDONLY);
      content = ContentAt(mount.Path("disk.raw"), offset, kBlock);
    }
    Shell(absl::StrCat("losetup -d ", loop));
    return content;
  }

  std::string disk_;
  std::string loop_;
  std::unique_ptr<Mount> below_;
};

TEST_F(StableStorageTest, FuaAndFlushAreDurableWhenTheyReturn) {
  const std::string device = Attach(v1::CACHE_MODE_WRITEBACK);
  EXPECT_EQ(FirstWord(absl::StrCat("/sys/block/", NameOf(device), "/queue/fua")), "1");

  const uint64_t flushes_at_first = Flushes();
  const uint64_t flush_requests = server_.Statistics("disk", v1::IO_OPERATION_FLUSH).completed();
  ASSERT_EQ(WriteAt(device, 0, Pattern(1)), 0);
  EXPECT_EQ(Flushes(), flushes_at_first) << "a write alone promises nothing";

  // The kernel sends it with FUA, and a flush behind it: each reaches the disk below.
  ASSERT_EQ(WriteAt(device, kMebibyte, Pattern(2), O_DSYNC), 0);
  const uint64_t flushes_after_fua = Flushes();
  const uint64_t requests_after_fua = server_.Statistics("disk", v1::IO_OPERATION_FLUSH).completed();
  EXPECT_EQ(flushes_after_fua - flushes_at_first, requests_after_fua - flush_requests + 1);
  EXPECT_EQ(AfterPowerFailure(kMebibyte), Pattern(2));

  ASSERT_EQ(WriteAt(device, 2 * kMebibyte, Pattern(3)), 0);
  Shell(absl::StrCat("sync ", device));
  EXPECT_GT(server_.Statistics("disk", v1::IO_OPERATION_FLUSH).completed(), requests_after_fua);
  EXPECT_GT(Flushes(), flushes_after_fua);
  EXPECT_EQ(AfterPowerFailure(0), Pattern(1));
  EXPECT_EQ(AfterPowerFailure(2 * kMebibyte), Pattern(3));
  server_.DetachDisk("disk", device);
}

TEST_F(StableStorageTest, UnsafeIgnoresThem) {
  const std::string device = Attach(v1::CACHE_MODE_UNSAFE);
  const uint64_t flushes = Flushes();
  ASSERT_EQ(WriteAt(device, kMebibyte, Pattern(2), O_DSYNC), 0);
  Shell(absl::StrCat("sync ", device));
  EXPECT_EQ(Flushes(), flushes);
  server_.DetachDisk("disk", device);
}

TEST_F(DeviceTest, DiscardGivesTheSpaceBack) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk");
  Shell(absl::StrCat("yes | dd bs=1M count=8 iflag=fullblock oflag=direct of=", device));
  EXPECT_EQ(AllocatedBytes(server_.Image("disk")), 8 * kMebibyte);
  Shell(absl::StrCat("blkdiscard --offset 2M --length 4M ", device));
  EXPECT_EQ(AllocatedBytes(server_.Image("disk")), 4 * kMebibyte);
  EXPECT_EQ(ContentAt(device, 2 * kMebibyte, kBlock), std::string(kBlock, '\0'));
  EXPECT_NE(ContentAt(device, 2 * kMebibyte - kBlock, kBlock), std::string(kBlock, '\0'));
  EXPECT_NE(ContentAt(device, 6 * kMebibyte, kBlock), std::string(kBlock, '\0'));
  server_.DetachDisk("disk", device);
}

// ---- Read-only.

class ReadOnlyTest : public DeviceTest {
 protected:
  void ExpectRefusesWrites(const std::string& device) {
    EXPECT_EQ(FirstWord(absl::StrCat("/sys/block/", NameOf(device), "/ro")), "1");
    EXPECT_THAT(WriteAt(device, 0, Pattern(1)), testing::AnyOf(EPERM, EROFS, EACCES));
    const std::string folder = server_.Path("mnt");
    std::filesystem::create_directories(folder);
    EXPECT_NE(mount(device.c_str(), folder.c_str(), "ext4", 0, ""), 0) << "mounted for writing";
    EXPECT_THAT(errno, testing::AnyOf(EROFS, EACCES));
    const Mount mounted(device, "ext4", folder, MS_RDONLY);
    EXPECT_EQ(FirstWord(mounted.Path("greeting")), "hello");
    EXPECT_EQ(server_.Statistics("disk", v1::IO_OPERATION_WRITE).completed(), 0u);
  }

  void MakeImage() {
    ASSERT_TRUE(server_.CreateRawImage("disk.raw", kSize).ok());
    Shell(absl::StrCat("mkdir ", server_.Path("files"), " && echo hello >", server_.Path("files/greeting"),
                       " && mkfs.ext4 -q -d ", server_.Path("files"), " ", server_.Image("disk")));
  }
};

TEST_F(ReadOnlyTest, AnExportMayBeAttachedTwice) {
  MakeImage();
  v1::ExportSpec spec = server_.SpecOf("disk");
  spec.set_read_only(true);
  ASSERT_TRUE(server_.CreateExport("disk", spec).ok());
  const std::string device = server_.AttachDisk("disk");
  v1::Attachment second;
  const grpc::Status attached = server_.Attach("second", "disk", &second);
  ASSERT_TRUE(attached.ok()) << attached.error_message();
  EXPECT_NE(second.device(), device);
  ExpectRefusesWrites(device);
  ExpectRefusesWrites(second.device());
  server_.DetachDisk("disk", device);
  EXPECT_EQ(ContentAt(second.device(), 1024, kBlock), ContentAt(server_.Image("disk"), 1024, kBlock));
  server_.DetachDisk("second", second.device());
}

TEST_F(ReadOnlyTest, AnAttachmentOfAWritableExport) {
  MakeImage();
  ASSERT_TRUE(server_.CreateRawExport("disk", "disk.raw").ok());
  v1::AttachmentSpec spec;
  spec.set_read_only(true);
  const std::string device = server_.AttachDisk("disk", spec);
  ExpectRefusesWrites(device);
  server_.DetachDisk("disk", device);
}

// ---- Who may have it.

TEST_F(DeviceTest, AWritableExportIsAttachedOnce) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk");
  v1::Attachment attachment;
  const grpc::Status refused = server_.Attach("second", "disk", &attachment);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(control::ReasonOf(refused), "EXPORT_IN_USE") << refused.error_message();
  // The same call again is the same device.
  EXPECT_EQ(server_.AttachDisk("disk"), device);
  EXPECT_THAT(UsedDevices(), ElementsAre(NameOf(device)));
  server_.DetachDisk("disk", device);
}

TEST_F(DeviceTest, ADeviceInUseIsNotDetached) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk");
  {
    const UniqueFd fd(open(device.c_str(), O_RDWR | O_EXCL | O_CLOEXEC));
    ASSERT_TRUE(fd) << strerror(errno);
    ExpectRefused("DEVICE_HELD", absl::StrCat("(pid ", getpid(), ")"));
  }
  Shell(absl::StrCat("echo '0 2048 linear ", device, " 0' | dmsetup create --noudevsync top"));
  ExpectRefused("DEVICE_HELD", "dm-0");
  Shell("dmsetup remove --noudevsync top");

  const std::string loop = OutputOf(absl::StrCat("losetup --find --show ", device));
  ExpectRefused("DEVICE_HELD", NameOf(loop));
  Shell(absl::StrCat("losetup -d ", loop));

  Shell(absl::StrCat("dd if=/dev/zero bs=1M count=1 conv=fsync status=none of=", device, " && mkswap ",
                     device, " && swapon ", device));
  ExpectRefused("DEVICE_MOUNTED", "swap");
  Shell(absl::StrCat("swapoff ", device));

  // All that time it went on.
  EXPECT_EQ(WriteAt(device, 0, Pattern(1)), 0);
  server_.DetachDisk("disk", device);
}

TEST_F(DeviceTest, ADeviceOfQemusIsNotTaken) {
  server_.CreateDisk("disk", kSize);
  Shell(absl::StrCat("truncate -s 8M ", server_.Path("qemu.img"),
                     " && qemu-nbd --connect=/dev/nbd3 --format=raw ", server_.Path("qemu.img")));
  EXPECT_EQ(WriteAt("/dev/nbd3", 0, Pattern(1)), 0);
  v1::AttachmentSpec spec;
  spec.set_device("/dev/nbd3");
  v1::Attachment attachment;
  const grpc::Status refused = server_.Attach("disk", "disk", &attachment, spec);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(control::ReasonOf(refused), "DEVICE_BUSY") << refused.error_message();
  EXPECT_THAT(refused.error_message(), HasSubstr("/dev/nbd3 is taken: connected by process"));
  EXPECT_EQ(server_.GetExport("disk").attachments_size(), 0);

  // Qemu's serves on, beside ours.
  const std::string device = server_.AttachDisk("disk");
  EXPECT_NE(device, "/dev/nbd3");
  EXPECT_EQ(ContentAt("/dev/nbd3", 0, kBlock), Pattern(1));
  server_.DetachDisk("disk", device);
  EXPECT_EQ(ContentAt("/dev/nbd3", 0, kBlock), Pattern(1));
  Shell("qemu-nbd --disconnect /dev/nbd3");
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!IsFree("/dev/nbd3") && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(10));

  // Now it may be had.
  EXPECT_EQ(server_.AttachDisk("disk", spec), "/dev/nbd3");
  server_.DetachDisk("disk", "/dev/nbd3");
}

// ---- From a shell.

TEST_F(DeviceTest, BerthctlPrintsThePathAndNothingElse) {
  server_.CreateDisk("disk", kSize);
  const std::string berthctl = absl::StrCat(Berthctl(), " --endpoint=unix:", server_.rpc_path(), " ");
  const control::ProcessResult attached = control::RunProcess(
      {Berthctl(), absl::StrCat("--endpoint=unix:", server_.rpc_path()), "attach", "disk", "--connections=2"},
      absl::Seconds(60));
  EXPECT_EQ(attached.exit_code, 0);
  ASSERT_THAT(attached.output, testing::MatchesRegex("/dev/nbd[0-9]+\n"));
  const std::string device = attached.output.substr(0, attached.output.size() - 1);
  EXPECT_EQ(SizeOf(device), kSize);
  EXPECT_EQ(WriteAt(device, 0, Pattern(1)), 0);

  {
    const UniqueFd fd(open(device.c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_THAT(OutputOf(absl::StrCat(berthctl, "detach disk || test $? = 5")), HasSubstr("--force"));
  }
  EXPECT_EQ(OutputOf(absl::StrCat(berthctl, "detach ", device)), "");
  EXPECT_TRUE(IsFree(device));
}

}  // namespace
}  // namespace berth::kernel_test
