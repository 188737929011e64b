#include "control/device_sessions.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <future>
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
  }

  void Start(size_t count) {
    auto image = OpenImage({.format = ImageFormat::kNull, .size = 1 << 20}, ImageRoots::Anywhere());
    ASSERT_TRUE(image.ok()) << image.status();
    faulty_ = std::make_shared<FaultyDevice>(*std::move(image));
    auto served = std::make_shared<nbd::Export>();
    served->name = "disk";
    served->device = faulty_;
    auto sessions = DeviceSessions::Start(*reactors_, served, count, {}, [this] { ended_.set_value(); });
    ASSERT_TRUE(sessions.ok()) << sessions.status();
    sessions_ = *std::move(sessions);
  }

  // As the kernel keeps a reference of its own.
  std::unique_ptr<nbd::RawClient> TakeKernelEnd(size_t socket) {
    const int copy = fcntl(sessions_->kernel_ends().at(socket), F_DUPFD_CLOEXEC, 0);
    return std::make_unique<nbd::RawClient>(UniqueFd(copy));
  }

  std::shared_ptr<FaultyDevice> faulty_;
  std::unique_ptr<ReactorPool> reactors_;
  std::promise<void> ended_;
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

TEST_F(DeviceSessionsTest, TheEndIsToldOnceWhenTheLastHasEnded) {
  Start(3);
  std::unique_ptr<nbd::RawClient> kernel[] = {TakeKernelEnd(0), TakeKernelEnd(1), TakeKernelEnd(2)};
  sessions_->CloseKernelEnds();
  kernel[0].reset();
  kernel[1].reset();
  // Served still, so the end was not told; a second telling would be an error of the promise.
  ASSERT_TRUE(kernel[2]->Send({0, nbd::Command::kFlush, 1, 0, 0}));
  EXPECT_EQ(kernel[2]->ReceiveSimple().error, nbd::Error::kNone);
  std::future<void> ended = ended_.get_future();
  EXPECT_EQ(ended.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  EXPECT_FALSE(sessions_->WaitUntilEnded(absl::Now()));
  kernel[2].reset();
  EXPECT_EQ(ended.wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_TRUE(sessions_->WaitUntilEnded(Soon()));
  EXPECT_EQ(sessions_->running(), 0u);
}

}  // namespace
}  // namespace berth::control
