// netlink/ where the kernel's nbd is not loaded, and the test decides whether it can be.

#include <fcntl.h>
#include <linux/nbd.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
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
  std::getline(std::ifstream("/proc/sys/kernel/modprobe") >> std::ws, loader);
  std::ofstream("/proc/sys/kernel/modprobe") << "/nonexistent";
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

  const absl::StatusOr<uint32_t> index = kernel->Connect(request);
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_TRUE(IsLoaded());
  EXPECT_TRUE(kernel->WaitUntilUsable(*index, kSize, absl::Minutes(1)).ok());
  EXPECT_TRUE(kernel->Disconnect(*index).ok());
  EXPECT_TRUE(kernel->WaitUntilFree(*index, absl::Minutes(1)).ok());

  // Where the kernel knows the family's alias, it loads the module for a process that has no modprobe.
  ASSERT_EQ(system("/sbin/rmmod nbd"), 0);
  std::ofstream("/proc/sys/kernel/modprobe") << loader << std::endl;
  options = {};
  options.modprobe = "/nonexistent/modprobe";
  const absl::StatusOr<uint32_t> again = LibnlNbdKernel::Create(options)->Connect(request);
  EXPECT_TRUE(again.ok()) << again.status();
  // The first one's watch was on the family that is gone; it takes up the new one.
  const absl::StatusOr<uint32_t> third = kernel->Connect(request);
  EXPECT_TRUE(third.ok()) << third.status();
  for (const absl::StatusOr<uint32_t>& connected : {again, third}) {
    EXPECT_TRUE(connected.ok() && kernel->Disconnect(*connected).ok());
  }
}

}  // namespace
}  // namespace berth::netlink
