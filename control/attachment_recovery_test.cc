// What a start finds, and what it makes of it; and connections that are lost while the daemon lives.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "control/attachment_table.h"
#include "control/control_fixture.h"

namespace berth::control {
namespace {

using testing::HasSubstr;

class RecoveryTest : public ControlFixture {
 protected:
  RecoveryTest() { attachment_options_.connections = 2; }

  void SetUp() override {
    Start();
    ASSERT_TRUE(CreateExport("disk", RawSpec("disk.raw")).ok());
  }

  std::string RecordPath(const std::string& name) const {
    return absl::StrCat(state_directory(), "/attachments/", name, ".json");
  }
  // The device waits, as the daemon that served it left it.
  void ExpectUntouched(uint32_t index, const std::string& identifier) {
    EXPECT_EQ(kernel().Inspect(index)->backend_identifier, identifier);
    EXPECT_EQ(kernel().LiveSockets(index), 0u);
    EXPECT_EQ(kernel().ConnectedDevices(), 1u);
  }
};

TEST(RequestDeadlineTest, IsAlwaysBeforeTheKernelsOwn) {
  EXPECT_EQ(RequestDeadline(absl::Seconds(20), absl::Seconds(30)), absl::Seconds(20));
  EXPECT_EQ(RequestDeadline(absl::Seconds(20), absl::Seconds(6)), absl::Seconds(4));
  EXPECT_LT(RequestDeadline(absl::Hours(1), absl::Seconds(1)), absl::Seconds(1));
}

// ---- What a start finds.

// A file that cannot be understood, for whatever reason, and its device.
TEST_F(RecoveryTest, AnUnreadableRecordHarmsNoDevice) {
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok()) << attached.status();
  const uint32_t index = IndexOf(*attached);
  const std::string identifier = kernel().Inspect(index)->backend_identifier;
  for (const char* content : {"", "{\"format_version\": 1, \"na", "{\"format_version\": 99, \"name\": \"a\"}",
                              "{\"format_version\": 1, \"name\": \"b\"}"}) {
    SCOPED_TRACE(content);
    Stop();
    std::ofstream(RecordPath("a"), std::ios::trunc) << content;
    Start();
    const auto shown = attachments().Get("a");
    ASSERT_TRUE(shown.ok()) << shown.status();
    EXPECT_EQ(shown->state(), v1::ATTACHMENT_STATE_FAILED);
    EXPECT_THAT(shown->error(), HasSubstr(RecordPath("a")));
    ExpectUntouched(index, identifier);
  }
}

TEST_F(RecoveryTest, ADeviceOfOursThatNobodyWantsIsDetached) {
  ASSERT_TRUE(Attach("a", SpecOf("disk")).ok());
  Stop();
  ASSERT_EQ(unlink(RecordPath("a").c_str()), 0);
  kernel().ConnectForeign(2, 4096, "somebody else's");
  kernel().ConnectForeign(3, 4096, BackendIdentifier(std::string(32, '0'), "a"));
  Start();
  EXPECT_TRUE(kernel().Inspect(0)->IsFree());
  EXPECT_EQ(kernel().Inspect(2)->backend_identifier, "somebody else's");
  EXPECT_EQ(kernel().ConnectedDevices(), 2u);
}

TEST_F(RecoveryTest, ADeviceOfOursThatNobodyWantsStaysWhileItIsUsed) {
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok()) << attached.status();
  const uint32_t index = IndexOf(*attached);
  const std::string identifier = kernel().Inspect(index)->backend_identifier;
  Stop();
  ASSERT_EQ(unlink(RecordPath("a").c_str()), 0);
  kernel().SetMountPoints(index, {"/mnt"});
  Start();
  ExpectUntouched(index, identifier);
  Stop();
  kernel().SetMountPoints(index, {});
  kernel().Hold(index, "fio (pid 7)");
  Start();
  ExpectUntouched(index, identifier);
  Stop();
  kernel().Release(index);
  kernel().SetHolders(index, {"dm-0"});
  Start();
  ExpectUntouched(index, identifier);
}

// ---- Connections that are lost while the daemon lives.

class LostConnectionsTest : public RecoveryTest {
 protected:
  void SetUp() override {
    // Only what is known to be lost is looked after, so that a test shows by which way it is known.
    attachment_options_.check_interval = absl::ZeroDuration();
    RecoveryTest::SetUp();
    v1::AttachmentSpec spec = SpecOf("disk");
    spec.set_connections(3);
    const auto attached = Attach("a", spec);
    ASSERT_TRUE(attached.ok()) << attached.status();
    index_ = IndexOf(*attached);
  }

  void WaitForLiveSockets(size_t count) {
    const absl::Time deadline = Soon();
    while (kernel().LiveSockets(index_) != count && absl::Now() < deadline) std::this_thread::yield();
    ASSERT_EQ(kernel().LiveSockets(index_), count);
  }
  void WaitForState(v1::AttachmentState state) {
    const absl::Time deadline = Soon();
    while (attachments().Get("a")->state() != state && absl::Now() < deadline) std::this_thread::yield();
    ASSERT_EQ(attachments().Get("a")->state(), state) << attachments().Get("a")->error();
  }
  void ExpectAllServed() {
    for (size_t socket = 0; socket < 3; ++socket) ExpectServed(index_, socket);
  }

  uint32_t index_ = 0;
};

TEST_F(LostConnectionsTest, OneOfThreeIsReplaced) {
  const uint64_t before = events().last_sequence();
  kernel().KillSocket(index_, 1);
  WaitForLiveSockets(3);
  ExpectAllServed();
  EXPECT_EQ(attachments().Get("a")->state(), v1::ATTACHMENT_STATE_ATTACHED);
  // The device was served all the time: no news.
  EXPECT_EQ(events().last_sequence(), before);
}

TEST_F(LostConnectionsTest, AllAreReplaced) {
  const uint64_t before = events().last_sequence();
  const std::string device = attachments().Get("a")->device();
  for (size_t socket = 0; socket < 3; ++socket) kernel().KillSocket(index_, socket);
  // Perhaps one after the other, perhaps all at once: then the device was without a server for a moment.
  WaitForLiveSockets(3);
  WaitForState(v1::ATTACHMENT_STATE_ATTACHED);
  ExpectAllServed();
  EXPECT_EQ(attachments().Get("a")->device(), device);
  for (uint64_t sequence = before; sequence < events().last_sequence(); ++sequence) {
    const auto event = events().WaitForNext(sequence, Soon());
    ASSERT_TRUE(event.ok() && event->has_value());
    EXPECT_TRUE((*event)->type() == v1::EVENT_TYPE_ATTACHMENT_FAILED ||
                (*event)->type() == v1::EVENT_TYPE_ATTACHED);
  }
}

TEST_F(LostConnectionsTest, TheKernelMayNoticeLate) {
  kernel().DropNextSockets(3);
  kernel().KillSocket(index_, 2);
  WaitForLiveSockets(3);
  ExpectAllServed();
}

// A message about a device that misses nothing costs a connection that is offered in vain; about one that is
// not ours, nothing.
TEST_F(LostConnectionsTest, AFalseAlarmChangesNothing) {
  kernel().ConnectForeign(3, 4096, "somebody else's");
  kernel().ReportDeadLink(3);
  kernel().ReportDeadLink(index_);
  kernel().KillSocket(index_, 0);
  WaitForLiveSockets(3);
  ExpectAllServed();
  EXPECT_EQ(kernel().Inspect(3)->backend_identifier, "somebody else's");
}

// Nobody told: neither the kernel nor the end of a session with the attachment shown as attached.
TEST_F(LostConnectionsTest, TheCheckFromTimeToTimeFindsWhatNobodyTold) {
  Stop();
  attachment_options_.check_interval = absl::Milliseconds(10);
  const std::string image = directory() + "/disk.raw";
  ASSERT_EQ(rename(image.c_str(), (image + ".away").c_str()), 0);
  Start();
  EXPECT_EQ(attachments().Get("a")->state(), v1::ATTACHMENT_STATE_FAILED);
  EXPECT_EQ(kernel().LiveSockets(index_), 0u);
  ASSERT_EQ(rename((image + ".away").c_str(), image.c_str()), 0);
  WaitForState(v1::ATTACHMENT_STATE_ATTACHED);
  ExpectAllServed();
  // The same reason is told once, however often it is tried.
  uint64_t failures = 0;
  for (uint64_t sequence = 0; sequence < events().last_sequence();) {
    const auto event = events().WaitForNext(sequence, Soon());
    ASSERT_TRUE(event.ok() && event->has_value());
    sequence = (*event)->sequence();
    if ((*event)->type() == v1::EVENT_TYPE_ATTACHMENT_FAILED) ++failures;
  }
  EXPECT_LE(failures, 2u);
}

// Somebody has disconnected it by hand: that stays so.
TEST_F(LostConnectionsTest, ADeviceThatIsGoneIsNotConnectedBehindOnesBack) {
  Stop();
  attachment_options_.check_interval = absl::Milliseconds(10);
  Start();
  ASSERT_TRUE(kernel().Disconnect(index_).ok());
  WaitForState(v1::ATTACHMENT_STATE_FAILED);
  EXPECT_EQ(kernel().ConnectedDevices(), 0u);
  const auto again = Attach("a", attachments().Get("a")->spec());
  ASSERT_TRUE(again.ok()) << again.status();
  ExpectServed(IndexOf(*again));
}

}  // namespace
}  // namespace berth::control
