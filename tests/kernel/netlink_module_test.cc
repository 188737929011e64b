// netlink/ where the kernel's nbd is not loaded, and the test decides whether it can be.

#include <linux/nbd.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <future>
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "netlink/libnl_nbd_kernel.h"
#include "tests/kernel/nbd_responder.h"

namespace berth::netlink {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kSize = 1 << 20;

ConnectRequest RequestFor(std::vector<int> sockets) {
  ConnectRequest request;
  request.size_bytes = kSize;
  request.server_flags = NBD_FLAG_HAS_FLAGS;
  request.timeout = absl::Seconds(60);
  request.sockets = std::move(sockets);
  return request;
}

bool IsLoaded() { return access("/sys/module/nbd", F_OK) == 0; }

TEST(NetlinkModuleTest, LivesWithoutTheModuleAndLoadsItOnConnect) {
  ASSERT_FALSE(IsLoaded());
  const std::unique_ptr<LibnlNbdKernel> kernel = LibnlNbdKernel::Create();
  EXPECT_TRUE(kernel->WatchDeadLinks([](uint32_t) {}).ok());
  EXPECT_THAT(*kernel->ListDevices(), IsEmpty());
  EXPECT_FALSE(kernel->Inspect(0)->exists);
  EXPECT_FALSE(IsLoaded()) << "looking must not load it";

  // Neither modprobe nor the kernel's own loader finds it.
  std::string loader;
  std::ifstream("/proc/sys/kernel/modprobe") >> loader;
  std::ofstream("/proc/sys/kernel/modprobe") << "/nonexistent" << std::endl;
  NbdResponder responder(kSize);
  const ConnectRequest request = RequestFor(responder.AddSockets(1));
  LibnlNbdKernelOptions options;
  options.modprobe = "/bin/false";
  absl::Status missing = LibnlNbdKernel::Create(options)->Connect(request).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(missing)) << missing;
  EXPECT_THAT(std::string(missing.message()), HasSubstr("modprobe nbd"));
  EXPECT_THAT(std::string(missing.message()), HasSubstr("/bin/false"));
  options = {};
  options.load_module = false;
  missing = LibnlNbdKernel::Create(options)->Connect(request).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(missing)) << missing;
  EXPECT_FALSE(IsLoaded());
  std::ofstream("/proc/sys/kernel/modprobe") << loader << std::endl;

  const absl::StatusOr<uint32_t> index = kernel->Connect(request);
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_TRUE(IsLoaded());
  EXPECT_TRUE(kernel->WaitUntilUsable(*index, kSize, absl::Minutes(1)).ok());
  EXPECT_TRUE(kernel->Disconnect(*index).ok());
  EXPECT_TRUE(kernel->WaitUntilFree(*index, absl::Minutes(1)).ok());
}

// Not on 6.1, whose module has no alias.
TEST(NetlinkModuleTest, KernelLoadsItForAProcessWithoutModprobe) {
  ASSERT_EQ(system("! test -e /sys/module/nbd || /sbin/rmmod nbd"), 0);
  NbdResponder responder(kSize);
  LibnlNbdKernelOptions options;
  options.modprobe = "/nonexistent/modprobe";
  const std::unique_ptr<LibnlNbdKernel> kernel = LibnlNbdKernel::Create(options);
  const absl::StatusOr<uint32_t> index = kernel->Connect(RequestFor(responder.AddSockets(1)));
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_TRUE(kernel->Disconnect(*index).ok());
}

TEST(NetlinkModuleTest, WatchSurvivesAReloadOfTheModule) {
  const std::unique_ptr<LibnlNbdKernel> kernel = LibnlNbdKernel::Create();
  std::promise<uint32_t> dead;
  EXPECT_TRUE(kernel->WatchDeadLinks([&](uint32_t index) { dead.set_value(index); }).ok());
  for (const bool reload : {true, false}) {
    NbdResponder responder(kSize);
    ConnectRequest request = RequestFor(responder.AddSockets(1));
    request.dead_connection_timeout = absl::Seconds(60);
    const absl::StatusOr<uint32_t> index = kernel->Connect(request);
    ASSERT_TRUE(index.ok()) << index.status();
    responder.CloseKernelEnds();
    if (!reload) {
      responder.Kill(0);
      EXPECT_EQ(dead.get_future().get(), *index);
    }
    ASSERT_TRUE(kernel->Disconnect(*index).ok());
    ASSERT_TRUE(kernel->WaitUntilFree(*index, absl::Minutes(1)).ok());
    if (reload) {
      ASSERT_EQ(system("/sbin/rmmod nbd"), 0);
    }
  }
}

}  // namespace
}  // namespace berth::netlink
