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
#include "google/rpc/error_details.pb.h"

namespace berth::control {
namespace {

using Call = FakeNbdKernel::Call;
using testing::HasSubstr;
using testing::IsEmpty;

// What the google.rpc.PreconditionFailure of an error is about; "" where it has none.
std::string SubjectOf(const absl::Status& status) {
  const auto payload = status.GetPayload("type.googleapis.com/google.rpc.PreconditionFailure");
  google::rpc::PreconditionFailure failure;
  if (!payload || !failure.ParseFromString(std::string(*payload))) return "";
  EXPECT_EQ(failure.violations_size(), 1);
  EXPECT_EQ(failure.violations(0).type(), ReasonOf(status));
  EXPECT_EQ(failure.violations(0).description(), status.message());
  return failure.violations(0).subject();
}

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
  // What is attached is not connected anew.
  kernel().FailNext(Call::kReconfigure, absl::InternalError("asked"));
  const auto second = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  EXPECT_EQ(first->SerializeAsString(), second->SerializeAsString());
  EXPECT_EQ(kernel().ConnectedDevices(), 1u);
  v1::AttachmentSpec other = SpecOf("disk");
  other.set_block_size(512);  // What the default is.
  EXPECT_TRUE(Attach("a", other).ok());
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

// An attach that the kernel knows of and the disk does not would be a device of nobody after a crash.
TEST_F(AttachmentTableTest, TheKernelIsNotAskedBeforeTheIntentIsOnDisk) {
  const std::string record = state_directory() + "/attachments/a.json";
  ASSERT_EQ(mkdir(record.c_str(), 0700), 0);
  kernel().FailNext(Call::kConnect, absl::InternalError("asked"));
  EXPECT_EQ(ReasonOf(Attach("a", SpecOf("disk")).status()), "STATE_NOT_WRITTEN");
  ASSERT_EQ(rmdir(record.c_str()), 0);
  EXPECT_THAT(std::string(Attach("a", SpecOf("disk")).status().message()), HasSubstr("asked"));
}

TEST_F(AttachmentTableTest, WhatTheSpecLeavesOpenIsTheConfigurations) {
  attachment_options_.connections = 3;
  attachment_options_.timeout = absl::Seconds(33);
  attachment_options_.dead_connection_timeout = absl::Seconds(44);
  Restart();
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok()) << attached.status();
  const uint32_t index = IndexOf(*attached);
  EXPECT_EQ(kernel().LiveSockets(index), 3u);
  EXPECT_EQ(kernel().ConnectedWith(index).timeout, absl::Seconds(33));
  EXPECT_EQ(kernel().ConnectedWith(index).dead_connection_timeout, absl::Seconds(44));
  EXPECT_EQ(kernel().ConnectedWith(index).block_size, 512u);
}

TEST_F(AttachmentTableTest, AnImageOfLessThanABlockIsRefused) {
  ASSERT_TRUE(CreateExport("small", RawSpec("small.raw", 600)).ok());
  v1::AttachmentSpec spec = SpecOf("small");
  spec.set_block_size(1024);
  const absl::Status refused = Attach("s", spec).status();
  EXPECT_EQ(ReasonOf(refused), "IMAGE_TOO_SMALL") << refused;
  EXPECT_EQ(SubjectOf(refused), "small");
  EXPECT_TRUE(absl::IsNotFound(attachments().Get("s").status()));
  const auto attached = Attach("s", SpecOf("small"));
  ASSERT_TRUE(attached.ok()) << attached.status();
  EXPECT_EQ(attached->size_bytes(), 512u);
}

TEST_F(AttachmentTableTest, WhyTheKernelRefusedIsSaid) {
  const auto reason = [this](const absl::Status& failure) {
    kernel().FailNext(Call::kConnect, failure);
    const absl::Status status = Attach("a", SpecOf("disk")).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(failure.message())));
    return ReasonOf(status) + " " + SubjectOf(status);
  };
  EXPECT_EQ(reason(absl::PermissionDeniedError("no CAP_SYS_ADMIN")), "NO_NETLINK_PERMISSION ");
  EXPECT_EQ(reason(absl::InternalError("a message of no sense")), "KERNEL_REFUSED ");
  EXPECT_EQ(reason(absl::FailedPreconditionError("no device is free")), "DEVICE_BUSY /dev/nbd*");
  Stop();
  ReplaceKernel(0);
  Start();
  EXPECT_EQ(reason(absl::FailedPreconditionError("no nbd")), "NBD_MODULE_MISSING nbd");
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
  EXPECT_EQ(SubjectOf(refused), "/dev/nbd2");
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
}

TEST_F(AttachmentTableTest, WhoOnlyProbesDoesNotKeepADevice) {
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok());
  kernel().HoldForLooks(IndexOf(*attached), 2);
  const absl::Status detached = Detach("a");
  EXPECT_TRUE(detached.ok()) << detached;
}

TEST_F(AttachmentTableTest, EachEndIsTold) {
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok());
  const uint64_t before = events().last_sequence();
  ASSERT_TRUE(Detach("a").ok());
  const auto event = events().WaitForNext(before, Soon());
  ASSERT_TRUE(event.ok() && event->has_value());
  EXPECT_EQ((*event)->type(), v1::EVENT_TYPE_DETACHED);
  EXPECT_EQ((*event)->attachment(), "a");
  EXPECT_EQ((*event)->export_(), "disk");
  EXPECT_EQ((*event)->device(), attached->device());
  EXPECT_EQ(events().last_sequence(), before + 1) << "the end of the connections is no failure";
}

// Forced, a device is disconnected; but it is not free before its last user lets go, and is not called so.
class HeldDetachTest : public AttachmentTableTest {
 protected:
  void SetUp() override {
    AttachmentTableTest::SetUp();
    const auto attached = Attach("a", SpecOf("disk"));
    ASSERT_TRUE(attached.ok()) << attached.status();
    index_ = IndexOf(*attached);
    device_ = attached->device();
  }

  // The next event of attachment "a" after `sequence`.
  v1::Event NextEvent(uint64_t sequence) {
    while (true) {
      const auto event = events().WaitForNext(sequence, Soon());
      if (!event.ok() || !event->has_value()) {
        ADD_FAILURE() << "no event came: " << event.status();
        return {};
      }
      if ((*event)->attachment() == "a") return **event;
      sequence = (*event)->sequence();
    }
  }

  void ExpectDetaching(const absl::Status& status, const std::string& user) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_EQ(ReasonOf(status), "DETACHING") << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(device_));
    EXPECT_THAT(std::string(status.message()), HasSubstr(user));
    EXPECT_THAT(std::string(status.message()), HasSubstr("by itself"));
    const auto shown = attachments().Get("a");
    ASSERT_TRUE(shown.ok()) << shown.status();
    EXPECT_EQ(shown->state(), v1::ATTACHMENT_STATE_DETACHING);
    EXPECT_EQ(shown->device(), device_);
    EXPECT_EQ(shown->error(), status.message());
    EXPECT_EQ(attachments().CountStates().at("detaching"), 1u);
  }
  void ExpectDetached(uint64_t sequence) {
    const v1::Event event = NextEvent(sequence);
    EXPECT_EQ(event.type(), v1::EVENT_TYPE_DETACHED);
    EXPECT_EQ(event.device(), device_);
    EXPECT_EQ(event.message(), "");
    // The event is told a moment before the name is free.
    EXPECT_TRUE(absl::IsNotFound(Detach("a")));
    EXPECT_FALSE(FileExists(state_directory() + "/attachments/a.json"));
    EXPECT_EQ(kernel().ConnectedDevices(), 0u);
  }

  uint32_t index_ = 0;
  std::string device_;
};

TEST_F(HeldDetachTest, TheUnmountFinishesIt) {
  kernel().SetMountPoints(index_, {"/mnt"});
  const uint64_t before = events().last_sequence();
  ExpectDetaching(Detach("a", true), "/mnt");
  const v1::Event event = NextEvent(before);
  EXPECT_EQ(event.type(), v1::EVENT_TYPE_DETACHING);
  EXPECT_THAT(event.message(), HasSubstr("/mnt"));
  EXPECT_EQ(kernel().LiveSockets(index_), 0u);
  // Asking again says the same, and is no news.
  ExpectDetaching(Detach("a"), "/mnt");
  EXPECT_EQ(events().last_sequence(), event.sequence());
  const absl::Status refused = Attach("a", SpecOf("disk")).status();
  EXPECT_EQ(ReasonOf(refused), "DETACHING") << refused;

  kernel().SetMountPoints(index_, {});
  ExpectDetached(event.sequence());
  const auto again = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(again.ok()) << again.status();
  ExpectServed(IndexOf(*again));
}

TEST_F(HeldDetachTest, TheExportIsFreeAtOnce) {
  kernel().SetMountPoints(index_, {"/mnt"});
  ExpectDetaching(Detach("a", true), "/mnt");
  EXPECT_THAT(exports().Get("disk")->attachments(), IsEmpty());
  const auto other = Attach("b", SpecOf("disk"));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_NE(IndexOf(*other), index_);
  const uint64_t before = events().last_sequence();
  kernel().SetMountPoints(index_, {});
  EXPECT_EQ(NextEvent(before).type(), v1::EVENT_TYPE_DETACHED);
  // The end of the one is not the end of the other.
  EXPECT_THAT(exports().Get("disk")->attachments(), testing::ElementsAre("b"));
  ExpectServed(IndexOf(*other));
}

TEST_F(HeldDetachTest, ARestartGoesOnWaiting) {
  kernel().SetMountPoints(index_, {"/mnt"});
  ExpectDetaching(Detach("a", true), "/mnt");
  Restart();
  const auto shown = attachments().Get("a");
  ASSERT_TRUE(shown.ok()) << shown.status();
  EXPECT_EQ(shown->state(), v1::ATTACHMENT_STATE_DETACHING) << shown->error();
  EXPECT_THAT(shown->error(), HasSubstr("/mnt"));
  EXPECT_THAT(exports().Get("disk")->attachments(), IsEmpty());
  const uint64_t before = events().last_sequence();
  kernel().SetMountPoints(index_, {});
  ExpectDetached(before);
}

TEST_F(HeldDetachTest, ADeviceLetGoWhileNobodyLookedIsForgotten) {
  kernel().SetMountPoints(index_, {"/mnt"});
  ExpectDetaching(Detach("a", true), "/mnt");
  Stop();
  kernel().SetMountPoints(index_, {});
  kernel().ConnectForeign(index_, 4096, "somebody else's");
  Start();
  EXPECT_TRUE(absl::IsNotFound(attachments().Get("a").status()));
  EXPECT_EQ(kernel().Inspect(index_)->backend_identifier, "somebody else's");
}

TEST_F(HeldDetachTest, AnOpenFileIsGivenAMoment) {
  attachment_options_.operation_timeout = absl::Milliseconds(20);
  Restart();
  kernel().Hold(index_, "fio (pid 7)");
  ExpectDetaching(Detach("a", true), "fio (pid 7)");
  const uint64_t before = events().last_sequence();
  kernel().Release(index_);
  ExpectDetached(before);
}

// What cannot be written down is not begun.
TEST_F(HeldDetachTest, ADetachThatCannotBeRecordedChangesNothing) {
  const std::string record = state_directory() + "/attachments/a.json";
  const std::string away = state_directory() + "/a.json";
  ASSERT_EQ(rename(record.c_str(), away.c_str()), 0);
  ASSERT_EQ(mkdir(record.c_str(), 0700), 0);
  EXPECT_EQ(ReasonOf(Detach("a", true)), "STATE_NOT_WRITTEN");
  EXPECT_EQ(attachments().Get("a")->state(), v1::ATTACHMENT_STATE_ATTACHED);
  ExpectServed(index_);
  ASSERT_EQ(rmdir(record.c_str()), 0);
  ASSERT_EQ(rename(away.c_str(), record.c_str()), 0);
  EXPECT_TRUE(Detach("a").ok());
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

// The kernel notices late that the connections of the process before are dead.
TEST_F(AttachmentTableTest, ARestartOffersItsConnectionsUntilTheKernelTakesThem) {
  const auto before = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(before.ok());
  Stop();
  kernel().DropNextSockets(2);
  Start();
  const auto after = attachments().Get("a");
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->state(), v1::ATTACHMENT_STATE_ATTACHED) << after->error();
  EXPECT_EQ(after->device(), before->device());
  ExpectServed(IndexOf(*after), 0);
  ExpectServed(IndexOf(*after), 1);
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
  EXPECT_EQ(attachments().CountStates().at("failed"), 1u);
  // The device waits for this export, which therefore stays.
  EXPECT_THAT(exports().Get("disk")->attachments(), testing::ElementsAre("a"));
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
  const auto records = store().LoadAttachments();
  ASSERT_TRUE(records.ok() && records->size() == 1);
  EXPECT_EQ((*records)[0].record->phase(), state::v1::ATTACHMENT_PHASE_CONNECTED);
  EXPECT_EQ((*records)[0].record->index(), IndexOf(*taken));
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

TEST_F(AttachmentTableTest, AResizeTouchesNoDeviceOfOthers) {
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok());
  kernel().ConnectForeign(IndexOf(*attached), 1 << 20, "somebody else's");
  const absl::Status refused = Resize("disk", 2 << 20).status();
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  EXPECT_EQ(kernel().Inspect(IndexOf(*attached))->size_bytes, 1u << 20);
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
  EXPECT_EQ(attachments().Get("a")->state(), v1::ATTACHMENT_STATE_ATTACHED);
  ExpectServed(IndexOf(*used));
}

TEST_F(AttachmentTableTest, ACallDoesNotWaitForAnotherBeyondItsDeadline) {
  const auto attached = Attach("a", SpecOf("disk"));
  ASSERT_TRUE(attached.ok());
  kernel().Block(Call::kDisconnect);
  std::thread slow([this] { EXPECT_TRUE(Detach("a").ok()); });
  ASSERT_TRUE(kernel().WaitUntilBlocked(Call::kDisconnect));
  v1::DetachRequest request;
  request.set_name("a");
  const absl::Status detach = attachments().Detach(request, absl::Now());
  EXPECT_TRUE(absl::IsDeadlineExceeded(detach)) << detach;
  EXPECT_EQ(ReasonOf(detach), "CALL_IN_PROGRESS");
  EXPECT_EQ(ReasonOf(attachments().Attach("a", SpecOf("disk"), absl::Now()).status()), "CALL_IN_PROGRESS");
  EXPECT_EQ(ReasonOf(attachments().ResizeDevices("disk", 1 << 20, absl::Now())), "CALL_IN_PROGRESS");
  // Looking waits for nobody, and other names do not either.
  EXPECT_EQ(attachments().Get("a")->state(), v1::ATTACHMENT_STATE_DETACHING);
  EXPECT_TRUE(absl::IsNotFound(Detach("b")));
  kernel().Unblock(Call::kDisconnect);
  slow.join();
}

}  // namespace
}  // namespace berth::control
