#include "control/device_sessions.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <future>
#include <map>
#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "image/opener/opener.h"
#include "nbd/raw_client.h"
#include "tests/fakes/faulty_device.h"

namespace berth::control {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

// The kernel's side of the sessions of one device.
class DeviceSessionsTest : public testing::Test {
 protected:
  void SetUp() override {
    auto reactors = ReactorPool::Create(2);
    ASSERT_TRUE(reactors.ok()) << reactors.status();
    reactors_ = *std::move(reactors);
    for (size_t live = 0; live < 8; ++live) lost_[live];
  }

  void Start(size_t count) {
    auto image = OpenImage({.format = ImageFormat::kNull, .size = 1 << 20}, ImageRoots::Anywhere());
    ASSERT_TRUE(image.ok()) << image.status();
    faulty_ = std::make_shared<FaultyDevice>(*std::move(image));
    auto served = std::make_shared<nbd::Export>();
    served->name = "disk";
    served->device = faulty_;
    sessions_ = std::make_unique<DeviceSessions>(*reactors_, served, nbd::SessionOptions(),
                                                 [this](size_t live) { lost_[live].set_value(); });
    ASSERT_TRUE(sessions_->Add(count).ok());
  }

  // As the kernel keeps a reference of its own.
  std::unique_ptr<nbd::RawClient> TakeKernelEnd(size_t socket) {
    const int copy = fcntl(sessions_->kernel_ends().at(socket), F_DUPFD_CLOEXEC, 0);
    return std::make_unique<nbd::RawClient>(UniqueFd(copy));
  }

  std::shared_ptr<FaultyDevice> faulty_;
  std::unique_ptr<ReactorPool> reactors_;
  // By how many connections are left.
  std::map<size_t, std::promise<void>> lost_;
  std::unique_ptr<DeviceSessions> sessions_;
};

// The kernel would make an I/O error of NBD_ESHUTDOWN; what is left unread it sends again to the next server.
TEST_F(DeviceSessionsTest, AStopAnswersWhatItReadAndRefusesNothing) {
  Start(1);
  const std::unique_ptr<nbd::RawClient> kernel = TakeKernelEnd(0);
  sessions_->CloseKernelEnds();
  faulty_->Hold(FaultyDevice::kRead);
  ASSERT_TRUE(kernel->Send({0, nbd::Command::kRead, 1, 0, 512}));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kRead, 1));
  sessions_->Stop();
  ASSERT_TRUE(kernel->Send({0, nbd::Command::kRead, 2, 0, 512}));
  ASSERT_TRUE(kernel->Send({0, nbd::Command::kFlush, 3, 0, 0}));
  EXPECT_EQ(sessions_->running(), 1u);
  faulty_->Release(FaultyDevice::kRead);
  const nbd::SimpleReply reply = kernel->ReceiveSimple();
  EXPECT_EQ(reply.cookie, 1u);
  EXPECT_EQ(reply.error, nbd::Error::kNone);
  EXPECT_EQ(kernel->Receive(512).size(), 512u);
  EXPECT_TRUE(kernel->AtEnd());
  EXPECT_TRUE(sessions_->WaitUntilEnded(Soon()));
  EXPECT_EQ(faulty_->count(FaultyDevice::kFlush), 0u);
}

TEST_F(DeviceSessionsTest, EveryLossIsToldWithWhatIsLeft) {
  Start(3);
  std::unique_ptr<nbd::RawClient> kernel[] = {TakeKernelEnd(0), TakeKernelEnd(1), TakeKernelEnd(2)};
  EXPECT_EQ(sessions_->CloseKernelEnds(), 3u);
  for (size_t left : {2, 1}) {
    kernel[left].reset();
    EXPECT_EQ(lost_[left].get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
    EXPECT_EQ(sessions_->live(), left);
  }
  ASSERT_TRUE(kernel[0]->Send({0, nbd::Command::kFlush, 1, 0, 0}));
  EXPECT_EQ(kernel[0]->ReceiveSimple().error, nbd::Error::kNone);
  EXPECT_FALSE(sessions_->WaitUntilEnded(absl::Now()));
  kernel[0].reset();
  EXPECT_EQ(lost_[0].get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_TRUE(sessions_->WaitUntilEnded(Soon()));
  EXPECT_EQ(sessions_->running(), 0u);
}

// What the kernel says to a RECONFIGURE that it did not need.
TEST_F(DeviceSessionsTest, ConnectionsThatTheKernelDropsAreKnownAtOnce) {
  Start(3);
  const std::unique_ptr<nbd::RawClient> kernel = TakeKernelEnd(1);
  EXPECT_EQ(sessions_->CloseKernelEnds(), 1u);
  EXPECT_EQ(sessions_->live(), 1u);
  ASSERT_TRUE(sessions_->Add(2).ok());
  const std::unique_ptr<nbd::RawClient> another = TakeKernelEnd(0);
  EXPECT_EQ(sessions_->CloseKernelEnds(), 1u);
  EXPECT_EQ(sessions_->live(), 2u);
  // Their end is no loss: only that of what the kernel had is told.
  ASSERT_TRUE(another->Send({0, nbd::Command::kFlush, 1, 0, 0}));
  EXPECT_EQ(another->ReceiveSimple().error, nbd::Error::kNone);
  sessions_->Stop();
  EXPECT_TRUE(sessions_->WaitUntilEnded(Soon()));
  EXPECT_EQ(lost_[1].get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_EQ(lost_[0].get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
}

}  // namespace
}  // namespace berth::control
