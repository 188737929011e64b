#include "control/attachment_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "control/control_fixture.h"
#include "control/status_details.h"

namespace berth::control {
namespace {

using Call = FakeNbdKernel::Call;
using testing::HasSubstr;
using testing::IsEmpty;

class AttachmentTableTest : public ControlFixture {
 protected:
  AttachmentTableTest() { attachment_options_.connections = 2; }

  void SetUp() override {
    Start();
    ASSERT_TRUE(CreateExport("disk", RawSpec("disk.raw")).ok());
  }

  // Nothing is left of an attach that failed, and it can be tried again.
  void ExpectNothingLeft(const std::string& name) {
    EXPECT_EQ(kernel().ConnectedDevices(), 0u);
    EXPECT_TRUE(absl::IsNotFound(attachments().Get(name).status()));
    EXPECT_FALSE(FileExists(absl::StrCat(state_directory(), "/attachments/", name, ".json")));
    EXPECT_THAT(exports().Get("disk")->attachments(), IsEmpty());
    const auto again = Attach(name, SpecOf("disk"));
    EXPECT_TRUE(again.ok()) << again.status();
  }
};

TEST_F(AttachmentTableTest, AttachServesTheExportOnEveryConnection) {
  v1::AttachmentSpec spec = SpecOf("disk");
  spec.set_connections(3);
  spec.mutable_timeout()->set_seconds(11);
  spec.mutable_dead_connection_timeout()->set_seconds(22);
  spec.set_block_size(4096);
  const auto attached = Attach("a", spec);
  ASSERT_TRUE(attached.ok()) << attached.status();
  EXPECT_EQ(attached->state(), v1::ATTACHMENT_STATE_ATTACHED);
  EXPECT_EQ(attached->size_bytes(), 1u << 20);
  const uint32_t index = IndexOf(*attached);
  for (size_t socket = 0; socket < 3; ++socket) ExpectServed(index, socket);
  const netlink::ConnectRequest request = kernel().ConnectedWith(index);
  EXPECT_EQ(request.backend_identifier, BackendIdentifier(store().instance_id(), "a"));
  EXPECT_EQ(request.timeout, absl::Seconds(11));
  EXPECT_EQ(request.dead_connection_timeout, absl::Seconds(22));
  EXPECT_EQ(request.block_size, 4096u);
  EXPECT_THAT(exports().Get("disk")->attachments(), testing::ElementsAre("a"));
}

TEST_F(AttachmentTableTest, PartitionsAreShown) {
  kernel().SetPartitions(0, {"nbd0p1", "nbd0p2"});
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok()) << attached.status();
  EXPECT_THAT(attached->partitions(), testing::ElementsAre("/dev/nbd0p1", "/dev/nbd0p2"));
}

TEST_F(AttachmentTableTest, TheSameRequestAgainIsTheSameDevice) {
  const auto first = Attach("a", SpecOf("disk"));
  const auto second = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  EXPECT_EQ(first->SerializeAsString(), second->SerializeAsString());
  EXPECT_EQ(kernel().ConnectedDevices(), 1u);
  v1::AttachmentSpec other = SpecOf("disk");
  other.set_read_only(true);
  const absl::Status refused = Attach("a", other).status();
  EXPECT_TRUE(absl::IsAlreadyExists(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("read_only"));
}

TEST_F(AttachmentTableTest, TheSameRequestAtOnceIsOneDevice) {
  std::vector<std::thread> threads;
  std::vector<std::string> devices(8);
  for (std::string& device : devices) {
    threads.emplace_back([this, &device] {
      const auto attached = Attach("a", SpecOf("disk"));
      ASSERT_TRUE(attached.ok()) << attached.status();
      device = attached->device();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(devices, testing::Each("/dev/nbd0"));
  EXPECT_EQ(kernel().ConnectedDevices(), 1u);
}

TEST_F(AttachmentTableTest, DifferentNamesAtOnce) {
  constexpr int kCount = 8;
  for (int i = 0; i < kCount; ++i) ASSERT_TRUE(CreateExport(absl::StrCat("m", i), MemorySpec()).ok());
  std::vector<std::thread> threads;
  for (int i = 0; i < kCount; ++i) {
    threads.emplace_back([this, i] {
      const auto attached = Attach(absl::StrCat("a", i), SpecOf(absl::StrCat("m", i)));
      ASSERT_TRUE(attached.ok()) << attached.status();
      const absl::Status detached = Detach(absl::StrCat("a", i));
      ASSERT_TRUE(detached.ok()) << detached;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(kernel().ConnectedDevices(), 0u);
}

TEST_F(AttachmentTableTest, EachStepThatFailsIsUndone) {
  for (const Call call : {Call::kConnect, Call::kWaitUntilUsable}) {
    kernel().FailNext(call, absl::InternalError("no such luck"));
    const absl::Status status = Attach("a", SpecOf("disk")).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr("no such luck"));
    ExpectNothingLeft("a");
    ASSERT_TRUE(Detach("a").ok());
  }
}

TEST_F(AttachmentTableTest, ADeviceWhoseConnectWasUnclearIsFoundAndReleased) {
  kernel().LoseNextConnectAnswer(absl::DeadlineExceededError("the kernel did not answer"));
  EXPECT_TRUE(absl::IsDeadlineExceeded(Attach("a", SpecOf("disk")).status()));
  ExpectNothingLeft("a");
}

TEST_F(AttachmentTableTest, WhatCannotBeUndoneStaysAndIsSaid) {
  kernel().FailNext(Call::kWaitUntilUsable, absl::InternalError("not readable"));
  kernel().FailNext(Call::kDisconnect, absl::InternalError("disconnect refused"));
  const absl::Status status = Attach("a", SpecOf("disk")).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("not readable"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("disconnect refused"));
  const auto failed = attachments().Get("a");
  ASSERT_TRUE(failed.ok()) << failed.status();
  EXPECT_EQ(failed->state(), v1::ATTACHMENT_STATE_FAILED);
  ASSERT_TRUE(Detach("a").ok());
  ExpectNothingLeft("a");
}

TEST_F(AttachmentTableTest, ARecordThatCannotBeWrittenEndsTheAttach) {
  // A directory in the place of the record cannot be replaced by a file.
  const std::string record = state_directory() + "/attachments/a.json";
  ASSERT_EQ(mkdir(record.c_str(), 0700), 0);
  const absl::Status status = Attach("a", SpecOf("disk")).status();
  EXPECT_EQ(ReasonOf(status), "STATE_NOT_WRITTEN") << status;
  ASSERT_EQ(rmdir(record.c_str()), 0);
  ExpectNothingLeft("a");
}

TEST_F(AttachmentTableTest, AWritableExportIsAttachedOnce) {
  ASSERT_TRUE(Attach("a", SpecOf("disk")).ok());
  const absl::Status refused = Attach("b", SpecOf("disk")).status();
  EXPECT_EQ(ReasonOf(refused), "EXPORT_IN_USE") << refused;
  EXPECT_TRUE(absl::IsNotFound(attachments().Get("b").status()));
  ASSERT_TRUE(Detach("a").ok());
  EXPECT_TRUE(Attach("b", SpecOf("disk")).ok());
}

TEST_F(AttachmentTableTest, ReadOnlyAndSharedExportsAreAttachedSeveralTimes) {
  v1::ExportSpec read_only = RawSpec("read.raw");
  read_only.set_read_only(true);
  ASSERT_TRUE(CreateExport("read", read_only).ok());
  v1::ExportSpec shared = MemorySpec();
  shared.set_shared_writers(true);
  ASSERT_TRUE(CreateExport("shared", shared).ok());
  for (const char* name : {"read", "shared"}) {
    EXPECT_TRUE(Attach(absl::StrCat(name, "1"), SpecOf(name)).ok());
    EXPECT_TRUE(Attach(absl::StrCat(name, "2"), SpecOf(name)).ok());
  }
  EXPECT_TRUE(kernel().Inspect(0)->read_only);
  EXPECT_FALSE(kernel().Inspect(2)->read_only);
}

TEST_F(AttachmentTableTest, ADeviceThatIsTakenIsNotTouched) {
  kernel().ConnectForeign(2, 4096, "somebody else's");
  v1::AttachmentSpec spec = SpecOf("disk");
  spec.set_device("/dev/nbd2");
  const absl::Status refused = Attach("a", spec).status();
  EXPECT_EQ(ReasonOf(refused), "DEVICE_BUSY") << refused;
  EXPECT_EQ(kernel().Inspect(2)->backend_identifier, "somebody else's");
  EXPECT_EQ(kernel().ConnectedDevices(), 1u);
}

TEST_F(AttachmentTableTest, ABusyDeviceIsNotDetachedUnlessForced) {
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok());
  const uint32_t index = IndexOf(*attached);
  kernel().SetMountPoints(index, {"/mnt"});
  absl::Status refused = Detach("a");
  EXPECT_EQ(ReasonOf(refused), "DEVICE_MOUNTED") << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("/mnt"));
  kernel().SetMountPoints(index, {});
  kernel().SetHolders(index, {"dm-0"});
  EXPECT_EQ(ReasonOf(Detach("a")), "DEVICE_HELD");
  kernel().SetHolders(index, {});
  kernel().Hold(index);
  refused = Detach("a");
  EXPECT_EQ(ReasonOf(refused), "DEVICE_HELD") << refused;
  ExpectServed(index);
  EXPECT_EQ(attachments().Get("a")->state(), v1::ATTACHMENT_STATE_ATTACHED);

  // Forced, it is disconnected; but it is not free before its opener lets go, and is not called so.
  refused = Detach("a", true);
  EXPECT_EQ(ReasonOf(refused), "DEVICE_HELD") << refused;
  EXPECT_EQ(attachments().Get("a")->state(), v1::ATTACHMENT_STATE_FAILED);
  kernel().Release(index);
  EXPECT_TRUE(Detach("a").ok());
  EXPECT_EQ(kernel().ConnectedDevices(), 0u);
}

TEST_F(AttachmentTableTest, DetachOfWhatIsNotThere) {
  EXPECT_TRUE(absl::IsNotFound(Detach("a")));
  v1::DetachRequest request;
  request.set_name("a");
  request.set_allow_missing(true);
  EXPECT_TRUE(attachments().Detach(request, Soon()).ok());
}

TEST_F(AttachmentTableTest, ARestartTakesTheSameDeviceBack) {
  const auto before = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(before.ok());
  const uint32_t index = IndexOf(*before);
  Stop();
  EXPECT_EQ(kernel().ConnectedDevices(), 1u);
  Start();
  const auto after = attachments().Get("a");
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->state(), v1::ATTACHMENT_STATE_ATTACHED) << after->error();
  EXPECT_EQ(after->SerializeAsString(), before->SerializeAsString());
  EXPECT_EQ(kernel().LiveSockets(index), 2u);
  ExpectServed(index);
  EXPECT_EQ(ReasonOf(Attach("b", SpecOf("disk")).status()), "EXPORT_IN_USE");
  EXPECT_TRUE(Detach("a").ok());
}

TEST_F(AttachmentTableTest, ARestartedMachineGetsAnotherDevice) {
  const auto before = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(before.ok());
  const uint32_t index = IndexOf(*before);
  Stop();
  ASSERT_TRUE(kernel().Disconnect(index).ok());
  kernel().ConnectForeign(index, 4096, "somebody else's");
  Start();
  const auto after = attachments().Get("a");
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(after->state(), v1::ATTACHMENT_STATE_ATTACHED) << after->error();
  EXPECT_NE(IndexOf(*after), index);
  EXPECT_EQ(kernel().Inspect(index)->backend_identifier, "somebody else's");
}

TEST_F(AttachmentTableTest, AnExplicitDeviceIsNotExchangedAfterARestart) {
  v1::AttachmentSpec spec = SpecOf("disk");
  spec.set_device("/dev/nbd1");
  ASSERT_TRUE(Attach("a", spec).ok());
  Stop();
  ASSERT_TRUE(kernel().Disconnect(1).ok());
  kernel().ConnectForeign(1, 4096, "somebody else's");
  Start();
  EXPECT_EQ(attachments().Get("a")->state(), v1::ATTACHMENT_STATE_FAILED);
  EXPECT_EQ(kernel().Inspect(1)->backend_identifier, "somebody else's");
  EXPECT_EQ(kernel().ConnectedDevices(), 1u);
  ASSERT_TRUE(kernel().Disconnect(1).ok());
  const auto again = Attach("a", spec);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->device(), "/dev/nbd1");
}

TEST_F(AttachmentTableTest, AResizeWhileNobodyServedReachesTheDevice) {
  const auto before = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(before.ok());
  Stop();
  ASSERT_EQ(truncate((directory() + "/disk.raw").c_str(), 3 << 20), 0);
  Start();
  EXPECT_EQ(attachments().Get("a")->size_bytes(), 3u << 20);
  EXPECT_EQ(kernel().Inspect(IndexOf(*before))->size_bytes, 3u << 20);
}

TEST_F(AttachmentTableTest, AMissingImageLeavesTheDeviceWaiting) {
  const auto before = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(before.ok());
  Stop();
  const std::string image = directory() + "/disk.raw";
  ASSERT_EQ(rename(image.c_str(), (image + ".away").c_str()), 0);
  Start();
  auto failed = attachments().Get("a");
  EXPECT_EQ(failed->state(), v1::ATTACHMENT_STATE_FAILED);
  EXPECT_THAT(failed->error(), HasSubstr("disk.raw"));
  EXPECT_EQ(kernel().ConnectedDevices(), 1u);

  ASSERT_EQ(rename((image + ".away").c_str(), image.c_str()), 0);
  ASSERT_TRUE(CreateExport("disk", RawSpec("disk.raw")).ok());
  const auto again = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->device(), before->device());
  ExpectServed(IndexOf(*again));
}

TEST_F(AttachmentTableTest, ATornRecordHarmsNoDevice) {
  const auto before = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(before.ok());
  Stop();
  const std::string record = state_directory() + "/attachments/a.json";
  std::ofstream(record, std::ios::trunc) << "{\"format_version\": 1, \"na";
  Start();
  const auto failed = attachments().Get("a");
  ASSERT_TRUE(failed.ok());
  EXPECT_EQ(failed->state(), v1::ATTACHMENT_STATE_FAILED);
  EXPECT_THAT(failed->error(), HasSubstr(record));
  EXPECT_EQ(kernel().ConnectedDevices(), 1u);
  EXPECT_EQ(ReasonOf(Attach("a", SpecOf("disk")).status()), "STATE_UNREADABLE");
  // It is found by its identifier.
  EXPECT_TRUE(Detach("a").ok());
  EXPECT_EQ(kernel().ConnectedDevices(), 0u);
  EXPECT_FALSE(FileExists(record));
}

TEST_F(AttachmentTableTest, AnAttachThatWasCutShortIsForgottenOrTakenOver) {
  state::v1::AttachmentRecord record;
  record.set_name("never");
  *record.mutable_spec() = SpecOf("disk");
  record.set_phase(state::v1::ATTACHMENT_PHASE_CONNECTING);
  ASSERT_TRUE(store().Put(record).ok());
  Restart();
  EXPECT_TRUE(absl::IsNotFound(attachments().Get("never").status()));
  EXPECT_FALSE(FileExists(state_directory() + "/attachments/never.json"));

  // The kernel connected, and the index was never written down.
  ASSERT_TRUE(Attach("a", SpecOf("disk")).ok());
  record.set_name("a");
  record.set_connections(2);
  record.set_block_size(512);
  ASSERT_TRUE(store().Put(record).ok());
  Restart();
  const auto taken = attachments().Get("a");
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_EQ(taken->state(), v1::ATTACHMENT_STATE_ATTACHED) << taken->error();
  ExpectServed(IndexOf(*taken));
}

TEST_F(AttachmentTableTest, ADetachThatWasCutShortIsFinished) {
  ASSERT_TRUE(Attach("a", SpecOf("disk")).ok());
  const auto records = store().LoadAttachments();
  ASSERT_TRUE(records.ok() && records->size() == 1);
  state::v1::AttachmentRecord record = *(*records)[0].record;
  record.set_phase(state::v1::ATTACHMENT_PHASE_DISCONNECTING);
  ASSERT_TRUE(store().Put(record).ok());
  Restart();
  EXPECT_TRUE(absl::IsNotFound(attachments().Get("a").status()));
  EXPECT_EQ(kernel().ConnectedDevices(), 0u);
}

TEST_F(AttachmentTableTest, LostConnectionsAreSeenAndReplaced) {
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok());
  const uint32_t index = IndexOf(*attached);
  const uint64_t before = events().last_sequence();
  kernel().KillSocket(index, 0);
  kernel().KillSocket(index, 1);
  const auto event = events().WaitForNext(before, Soon());
  ASSERT_TRUE(event.ok() && event->has_value());
  EXPECT_EQ((*event)->type(), v1::EVENT_TYPE_ATTACHMENT_FAILED);
  EXPECT_EQ(attachments().Get("a")->state(), v1::ATTACHMENT_STATE_FAILED);
  const auto again = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->device(), attached->device());
  ExpectServed(index);
}

TEST_F(AttachmentTableTest, AResizeReachesTheDevice) {
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok());
  const uint32_t index = IndexOf(*attached);
  ASSERT_TRUE(Resize("disk", 2 << 20).ok());
  EXPECT_EQ(kernel().Inspect(index)->size_bytes, 2u << 20);
  EXPECT_EQ(attachments().Get("a")->size_bytes(), 2u << 20);
  EXPECT_EQ(ReasonOf(Resize("disk", 1 << 20).status()), "WOULD_SHRINK");
  ASSERT_TRUE(Resize("disk", 1 << 20, true).ok());
  EXPECT_EQ(kernel().Inspect(index)->size_bytes, 1u << 20);

  // What failed half way goes on when it is sent again.
  kernel().FailNext(Call::kReconfigure, absl::InternalError("later"));
  EXPECT_FALSE(Resize("disk", 4 << 20).ok());
  EXPECT_TRUE(Resize("disk", 4 << 20).ok());
  EXPECT_EQ(kernel().Inspect(index)->size_bytes, 4u << 20);
}

TEST_F(AttachmentTableTest, TheNumberOfAttachmentsIsLimited) {
  max_attachments_ = 1;
  Restart();
  ASSERT_TRUE(CreateExport("other", MemorySpec()).ok());
  ASSERT_TRUE(Attach("a", SpecOf("disk")).ok());
  EXPECT_EQ(ReasonOf(Attach("b", SpecOf("other")).status()), "LIMIT_REACHED");
}

TEST_F(AttachmentTableTest, DetachAllLeavesWhatIsInUse) {
  ASSERT_TRUE(CreateExport("other", MemorySpec()).ok());
  const auto used = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(used.ok() && Attach("b", SpecOf("other")).ok());
  kernel().SetMountPoints(IndexOf(*used), {"/mnt"});
  attachments().DetachAll(Soon());
  EXPECT_EQ(kernel().ConnectedDevices(), 1u);
  EXPECT_TRUE(attachments().Get("a").ok());
}

}  // namespace
}  // namespace berth::control
