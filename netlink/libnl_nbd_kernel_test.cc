// What holds on a machine without nbd; tests/kernel/netlink_test.cc has the rest.
#include "netlink/libnl_nbd_kernel.h"

#include <linux/nbd.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace berth::netlink {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class LibnlNbdKernelTest : public testing::Test {
 protected:
  LibnlNbdKernelTest() {
    std::string root = absl::StrCat(getenv("TEST_TMPDIR"), "/tree.XXXXXX");
    EXPECT_NE(mkdtemp(root.data()), nullptr);
    options_.paths = {root + "/sys", root + "/proc", root + "/dev"};
    options_.load_module = false;
    std::filesystem::create_directories(options_.paths.sys + "/block");
    Put(options_.paths.proc + "/self/mountinfo", "22 1 43:0 / /mnt rw - ext4 /dev/nbd0 rw\n");
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets_), 0);
  }
  ~LibnlNbdKernelTest() override {
    close(sockets_[0]);
    close(sockets_[1]);
  }

  static void Put(const std::string& path, const std::string& content) {
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path) << content;
  }
  void Disk(const std::string& path, const std::string& content) {
    Put(options_.paths.sys + "/block/" + path, content);
  }

  LibnlNbdKernelOptions options_;
  int sockets_[2];
};

TEST_F(LibnlNbdKernelTest, WithoutNbdOnlyConnectFails) {
  const std::unique_ptr<LibnlNbdKernel> kernel = LibnlNbdKernel::Create(options_);
  EXPECT_TRUE(kernel->WatchDeadLinks([](uint32_t) {}).ok());
  EXPECT_FALSE(kernel->WatchDeadLinks([](uint32_t) {}).ok()) << "set once";
  EXPECT_THAT(*kernel->ListDevices(), IsEmpty());
  EXPECT_FALSE(kernel->Inspect(0)->exists);
  EXPECT_TRUE(absl::IsNotFound(kernel->Disconnect(0)));
  ConnectRequest request;
  request.size_bytes = 4096;
  request.timeout = absl::Seconds(1);
  request.sockets = {sockets_[0]};
  const absl::Status missing = kernel->Connect(request).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(missing)) << missing;
  EXPECT_THAT(std::string(missing.message()), HasSubstr("modprobe nbd"));
  EXPECT_THAT(std::string(missing.message()), HasSubstr("CONFIG_BLK_DEV_NBD"));
  request.size_bytes = 1;
  EXPECT_TRUE(absl::IsInvalidArgument(kernel->Connect(request).status()));
}

TEST_F(LibnlNbdKernelTest, WaitUntilFreeSaysWhatHoldsIt) {
  Disk("nbd0/dev", "43:0\n");
  Disk("nbd0/size", "8\n");
  Disk("nbd0/holders/dm-3", "");
  const std::unique_ptr<LibnlNbdKernel> kernel = LibnlNbdKernel::Create(options_);
  EXPECT_THAT(kernel->Inspect(0)->mount_points, ElementsAre("/mnt"));
  const absl::Status held = kernel->WaitUntilFree(0, absl::ZeroDuration());
  EXPECT_TRUE(absl::IsDeadlineExceeded(held)) << held;
  EXPECT_THAT(std::string(held.message()), HasSubstr("below dm-3"));
  EXPECT_THAT(std::string(held.message()), HasSubstr("mounted on /mnt"));
  EXPECT_TRUE(kernel->WaitUntilFree(1, absl::ZeroDuration()).ok()) << "what is not there is held by nobody";
}

TEST_F(LibnlNbdKernelTest, FindUseDoesNotOpenAFreeDevice) {
  Disk("nbd0/dev", "43:0\n");
  Disk("nbd0/size", "0\n");
  // An attempt to open it would fail: the tree has no node.
  const absl::StatusOr<DeviceUse> use = LibnlNbdKernel::Create(options_)->FindUse(0);
  ASSERT_TRUE(use.ok()) << use.status();
  EXPECT_FALSE(use->claimed);
}

TEST_F(LibnlNbdKernelTest, WaitUntilUsableSaysWhatIsMissing) {
  const std::unique_ptr<LibnlNbdKernel> kernel = LibnlNbdKernel::Create(options_);
  EXPECT_TRUE(absl::IsNotFound(kernel->WaitUntilUsable(0, 4096, absl::ZeroDuration())));
  Disk("nbd0/dev", "43:0\n");
  Disk("nbd0/size", "8\n");
  EXPECT_TRUE(absl::IsFailedPrecondition(kernel->WaitUntilUsable(0, 4096, absl::ZeroDuration())));
  Disk("nbd0/pid", "1\n");
  EXPECT_TRUE(absl::IsDeadlineExceeded(kernel->WaitUntilUsable(0, 8192, absl::ZeroDuration())));
  const absl::Status no_node = kernel->WaitUntilUsable(0, 4096, absl::ZeroDuration());
  EXPECT_TRUE(absl::IsFailedPrecondition(no_node)) << no_node;
  EXPECT_THAT(std::string(no_node.message()), HasSubstr(options_.paths.dev + "/nbd0"));
}

TEST_F(LibnlNbdKernelTest, ReconfigureOfAnothersDevice) {
  Disk("nbd0/dev", "43:0\n");
  Disk("nbd0/size", "8\n");
  Disk("nbd0/pid", "1\n");
  Disk("nbd0/backend", "theirs\n");
  ReconfigureRequest request;
  request.backend_identifier = "mine";
  const absl::Status refused = LibnlNbdKernel::Create(options_)->Reconfigure(request);
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("theirs"));
}

}  // namespace
}  // namespace berth::netlink
