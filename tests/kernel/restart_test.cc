// berthd ends and comes back under a mounted file system in use, and beside another berthd.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/kernel/disk_server.h"
#include "tests/kernel/writers.h"

namespace berth::kernel_test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kSize = 64 * kMebibyte;
constexpr size_t kBlock = 4096;

v1::AttachmentSpec SpecWithTimeout(uint32_t connections) {
  v1::AttachmentSpec spec;
  spec.set_connections(connections);
  // What a killed server had not answered is sent again after this.
  spec.mutable_timeout()->set_seconds(5);
  return spec;
}

void ExpectAttached(DiskServer& server, const std::string& name, const std::string& device) {
  v1::Attachment attachment;
  const grpc::Status status = server.GetAttachment(name, &attachment);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(attachment.state(), v1::ATTACHMENT_STATE_ATTACHED) << attachment.error();
  EXPECT_EQ(attachment.device(), device);
}

class RestartTest : public testing::TestWithParam<uint32_t> {};

TEST_P(RestartTest, AMountedFileSystemInUseGoesOn) {
  DiskServer server;
  ASSERT_TRUE(server.Start());
  server.CreateDisk("disk", kSize);
  const std::string device = server.AttachDisk("disk", SpecWithTimeout(GetParam()));
  Shell(absl::StrCat("mkfs.ext4 -q ", device));
  // An error of the journal or of the metadata shows at once.
  Mount mount(device, "ext4", server.Path("mnt"), 0, "errors=remount-ro");
  Writers writers(mount, 4);
  ASSERT_TRUE(writers.WaitForRounds(20));
  for (const int signal : {SIGTERM, SIGKILL, SIGTERM}) {
    SCOPED_TRACE(strsignal(signal));
    EXPECT_EQ(server.Stop(signal), signal == SIGKILL ? 128 + SIGKILL : 0);
    ASSERT_TRUE(server.Start());
    ExpectAttached(server, "disk", device);
    ASSERT_TRUE(writers.WaitForRounds(20));
  }
  writers.Stop();
  writers.ExpectIntact(mount);
  ASSERT_TRUE(mount.Unmount());
  Shell(absl::StrCat("e2fsck -f -n ", device));
  {
    Mount again(device, "ext4", server.Path("mnt"));
    writers.ExpectIntact(again);
  }
  server.DetachDisk("disk", device);
  Shell(absl::StrCat("e2fsck -f -n ", server.Image("disk")));
}

INSTANTIATE_TEST_SUITE_P(Connections, RestartTest, testing::Values(1, 2));

TEST(RestartedTest, ADeviceThatIsGoneIsConnectedAgain) {
  DiskServer server;
  ASSERT_TRUE(server.Start());
  server.CreateDisk("disk", kSize);
  const std::string device = server.AttachDisk("disk");
  ASSERT_EQ(WriteAt(device, 0, Pattern(1)), 0);
  EXPECT_EQ(server.Stop(SIGKILL), 128 + SIGKILL);
  Shell(absl::StrCat("nbd-client -d ", device));
  ASSERT_TRUE(server.Start());
  v1::Attachment attachment;
  ASSERT_TRUE(server.GetAttachment("disk", &attachment).ok());
  EXPECT_EQ(attachment.state(), v1::ATTACHMENT_STATE_ATTACHED) << attachment.error();
  EXPECT_EQ(ContentAt(attachment.device(), 0, kBlock), Pattern(1));
  server.DetachDisk("disk", attachment.device());
  EXPECT_THAT(UsedDevices(), IsEmpty());
}

TEST(RestartedTest, DetachOnExitLeavesNothing) {
  DiskServer server;
  ASSERT_TRUE(server.Start({"--detach-on-exit"}));
  server.CreateDisk("disk", kSize);
  server.AttachDisk("disk");
  EXPECT_EQ(server.Stop(), 0);
  EXPECT_THAT(UsedDevices(), IsEmpty());
}

// A block of each daemon's own on its device, read by the device and by the image.
void ExpectServes(DiskServer& server, const std::string& device, uint64_t seed) {
  ASSERT_EQ(WriteAt(device, seed * kBlock, Pattern(seed)), 0) << device;
  EXPECT_EQ(ContentAt(device, seed * kBlock, kBlock), Pattern(seed));
  EXPECT_EQ(ContentAt(server.Image("disk"), seed * kBlock, kBlock), Pattern(seed));
}

TEST(TwoDaemonsTest, DoNotTouchEachOthersDevices) {
  DiskServer one;
  DiskServer two;
  ASSERT_TRUE(one.Start());
  ASSERT_TRUE(two.Start());
  // The same names, so that nothing but the daemon tells them apart.
  one.CreateDisk("disk", kSize);
  two.CreateDisk("disk", kSize / 2);
  const std::string device_of_one = one.AttachDisk("disk", SpecWithTimeout(2));
  const std::string device_of_two = two.AttachDisk("disk", SpecWithTimeout(2));
  ASSERT_NE(device_of_one, device_of_two);
  const std::string backend_of_two =
      FirstWord(absl::StrCat("/sys/block/", NameOf(device_of_two), "/backend"));
  EXPECT_THAT(backend_of_two, HasSubstr("/disk"));
  ExpectServes(one, device_of_one, 1);
  ExpectServes(two, device_of_two, 2);

  // One wants what the other has.
  one.CreateDisk("more", kSize);
  v1::AttachmentSpec spec;
  spec.set_device(device_of_two);
  v1::Attachment attachment;
  const grpc::Status taken = one.Attach("more", "more", &attachment, spec);
  EXPECT_EQ(control::ReasonOf(taken), "DEVICE_BUSY") << taken.error_message();
  EXPECT_THAT(taken.error_message(), HasSubstr(device_of_two));
  EXPECT_THAT(taken.error_message(), HasSubstr(backend_of_two));

  // One ends and comes back, in both ways; the other does not notice, and nothing is mixed up.
  uint64_t seed = 3;
  for (const int signal : {SIGKILL, SIGTERM}) {
    one.Stop(signal);
    ExpectServes(two, device_of_two, ++seed);
    ASSERT_TRUE(one.Start());
    ExpectAttached(one, "disk", device_of_one);
    ExpectServes(one, device_of_one, ++seed);
    ExpectServes(two, device_of_two, ++seed);
    EXPECT_EQ(SizeOf(device_of_one), kSize);
    EXPECT_EQ(SizeOf(device_of_two), kSize / 2);
  }

  // One's device is gone; the other's stays, over a restart of its own too.
  one.DetachDisk("disk", device_of_one);
  ExpectServes(two, device_of_two, ++seed);
  two.Stop(SIGTERM);
  EXPECT_EQ(one.AttachDisk("more"), device_of_one);
  ASSERT_TRUE(two.Start());
  ExpectAttached(two, "disk", device_of_two);
  ExpectServes(two, device_of_two, ++seed);
  EXPECT_EQ(FirstWord(absl::StrCat("/sys/block/", NameOf(device_of_two), "/backend")), backend_of_two);
  two.DetachDisk("disk", device_of_two);
  EXPECT_THAT(UsedDevices(), ElementsAre(NameOf(device_of_one)));
  one.DetachDisk("more", device_of_one);
}

}  // namespace
}  // namespace berth::kernel_test
