// The main path, from a gRPC call to a file system on /dev/nbdX and back.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "control/berthd_process.h"
#include "image/io/unique_fd.h"

namespace berth::control {
namespace {

constexpr uint64_t kSize = uint64_t{64} << 20;

class AttachTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(berthd_.Start()); }

  void CreateDisk() {
    grpc::Status status = berthd_.CreateRawImage("disk.raw", kSize);
    ASSERT_TRUE(status.ok()) << status.error_message();
    status = berthd_.CreateRawExport("disk", "disk.raw");
    ASSERT_TRUE(status.ok()) << status.error_message();
  }

  std::string AttachDisk() {
    v1::Attachment attachment;
    const grpc::Status status = berthd_.Attach("a", "disk", &attachment);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(attachment.size_bytes(), kSize);
    return attachment.device();
  }

  void ExpectDetached(const std::string& device) {
    const grpc::Status status = berthd_.Detach("a");
    EXPECT_TRUE(status.ok()) << status.error_message();
    const std::string folder = absl::StrCat("/sys/block/", device.substr(strlen("/dev/")));
    EXPECT_NE(access((folder + "/pid").c_str(), F_OK), 0);
    std::string size;
    std::ifstream(folder + "/size") >> size;
    EXPECT_EQ(size, "0");
  }

  static void ExpectSuccess(const std::vector<std::string>& command) {
    const ProcessResult result = RunProcess(command, absl::Seconds(120));
    EXPECT_EQ(result.exit_code, 0) << command[0] << ": " << result.output;
  }

  std::string Path(const std::string& name) const { return absl::StrCat(berthd_.directory(), "/", name); }

  BerthdProcess berthd_;
};

std::vector<char> Block(char fill) { return std::vector<char>(4096, fill); }

TEST_F(AttachTest, WhatIsWrittenToTheDeviceIsInTheImage) {
  CreateDisk();
  const std::string device = AttachDisk();
  const std::vector<char> written = Block('b');
  {
    UniqueFd fd(open(device.c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_TRUE(fd) << device << ": " << strerror(errno);
    ASSERT_EQ(pwrite(fd.get(), written.data(), written.size(), 8192), 4096);
    ASSERT_EQ(fsync(fd.get()), 0);
  }
  std::vector<char> read(4096);
  UniqueFd image(open(Path("disk.raw").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(pread(image.get(), read.data(), read.size(), 8192), 4096);
  EXPECT_EQ(read, written);
  ExpectDetached(device);
}

TEST_F(AttachTest, AFileSystemLivesOnIt) {
  CreateDisk();
  const std::string device = AttachDisk();
  ExpectSuccess({"/sbin/mkfs.ext4", "-q", device});
  const std::string mounted = Path("mnt");
  ASSERT_EQ(mkdir(mounted.c_str(), 0700), 0);
  ASSERT_EQ(mount(device.c_str(), mounted.c_str(), "ext4", 0, ""), 0) << strerror(errno);
  std::ofstream(mounted + "/greeting") << "hello";
  const grpc::Status refused = berthd_.Detach("a");
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonOf(refused), "DEVICE_MOUNTED") << refused.error_message();
  EXPECT_THAT(refused.error_message(), testing::HasSubstr(mounted));
  ASSERT_EQ(umount(mounted.c_str()), 0) << strerror(errno);
  ExpectDetached(device);
  ExpectSuccess({"/sbin/fsck.ext4", "-f", "-n", Path("disk.raw")});
}

TEST_F(AttachTest, AnOpenDeviceIsNotDetached) {
  CreateDisk();
  const std::string device = AttachDisk();
  {
    UniqueFd fd(open(device.c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(fd);
    const grpc::Status refused = berthd_.Detach("a");
    EXPECT_EQ(ReasonOf(refused), "DEVICE_HELD") << refused.error_message();
  }
  ExpectDetached(device);
}

TEST_F(AttachTest, ATakenDeviceIsRefused) {
  CreateDisk();
  const std::string device = AttachDisk();
  ASSERT_TRUE(berthd_.CreateRawImage("other.raw", kSize).ok());
  ASSERT_TRUE(berthd_.CreateRawExport("other", "other.raw").ok());
  v1::AttachmentSpec spec;
  spec.set_device(device);
  v1::Attachment attachment;
  const grpc::Status refused = berthd_.Attach("b", "other", &attachment, spec);
  EXPECT_EQ(ReasonOf(refused), "DEVICE_BUSY") << refused.error_message();
  EXPECT_THAT(refused.error_message(), testing::HasSubstr(device));
  ExpectDetached(device);
}

TEST_F(AttachTest, AResizeReachesTheDevice) {
  CreateDisk();
  const std::string device = AttachDisk();
  const grpc::Status status = berthd_.Resize("disk", 2 * kSize);
  ASSERT_TRUE(status.ok()) << status.error_message();
  UniqueFd fd(open(device.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(lseek(fd.get(), 0, SEEK_END), static_cast<off_t>(2 * kSize));
  fd.Reset();
  ExpectDetached(device);
}

TEST_F(AttachTest, ARestartedServerServesTheSameDevice) {
  CreateDisk();
  const std::string device = AttachDisk();
  const std::string mounted = Path("mnt");
  ExpectSuccess({"/sbin/mkfs.ext4", "-q", device});
  ASSERT_EQ(mkdir(mounted.c_str(), 0700), 0);
  ASSERT_EQ(mount(device.c_str(), mounted.c_str(), "ext4", 0, ""), 0) << strerror(errno);
  std::ofstream(mounted + "/before") << "before";
  sync();
  EXPECT_EQ(berthd_.Stop(), 0);
  ASSERT_TRUE(berthd_.Start());
  v1::Attachment attachment;
  ASSERT_TRUE(berthd_.GetAttachment("a", &attachment).ok());
  EXPECT_EQ(attachment.state(), v1::ATTACHMENT_STATE_ATTACHED) << attachment.error();
  EXPECT_EQ(attachment.device(), device);
  std::ofstream(mounted + "/after") << "after";
  ASSERT_EQ(umount(mounted.c_str()), 0) << strerror(errno);
  ExpectDetached(device);
  ExpectSuccess({"/sbin/fsck.ext4", "-f", "-n", Path("disk.raw")});
}

}  // namespace
}  // namespace berth::control
