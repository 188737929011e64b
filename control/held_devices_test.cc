#include "control/held_devices.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <future>
#include <string>

#include "tests/fakes/fake_nbd_kernel.h"

namespace berth::control {
namespace {

constexpr char kOurs[] = "berth:here/a";

class HeldDevicesTest : public testing::Test {
 protected:
  void SetUp() override {
    kernel_.ConnectForeign(1, 4096, kOurs);
    kernel_.Hold(1);
    ASSERT_TRUE(kernel_.Disconnect(1).ok());
  }
  std::string WaitForName() {
    std::future<std::string> name = told_.get_future();
    return name.wait_for(std::chrono::seconds(60)) == std::future_status::ready ? name.get() : "nobody";
  }

  FakeNbdKernel kernel_{4};
  std::promise<std::string> told_;  // A second telling would be an error of the promise.
  uint32_t told_of_ = 0;            // Written before the promise is kept.
  HeldDevices held_{&kernel_, [this](const std::string& name, const HeldDevice& device) {
                      told_of_ = device.index;
                      told_.set_value(name);
                    }};
};

TEST_F(HeldDevicesTest, TellsOnceWhenTheLastUserIsGone) {
  held_.Watch("a", {1, kOurs});
  EXPECT_EQ(held_.size(), 1u);
  kernel_.Release(1);
  EXPECT_EQ(WaitForName(), "a");
  EXPECT_EQ(held_.size(), 0u);
}

TEST_F(HeldDevicesTest, ADeviceOfAnotherMeansThatOursIsGone) {
  kernel_.ConnectForeign(1, 4096, "somebody else's");
  held_.Watch("a", {1, kOurs});
  EXPECT_EQ(WaitForName(), "a");
}

TEST_F(HeldDevicesTest, ADeviceThatDoesNotExistIsGone) {
  held_.Watch("a", {77, kOurs});
  EXPECT_EQ(WaitForName(), "a");
}

TEST_F(HeldDevicesTest, WhatCannotBeLookedAtIsWaitedFor) {
  for (int i = 0; i < 3; ++i) {
    kernel_.FailNext(FakeNbdKernel::Call::kInspect, absl::InternalError("no such luck"));
  }
  kernel_.Release(1);
  held_.Watch("a", {1, kOurs});
  EXPECT_EQ(WaitForName(), "a");
  // Not before it had looked three times in vain.
  EXPECT_TRUE(kernel_.Inspect(1).ok());
}

TEST_F(HeldDevicesTest, WhatIsForgottenIsNotTold) {
  held_.Watch("b", {1, kOurs});
  held_.Forget("b");
  held_.Watch("a", {1, kOurs});
  kernel_.Release(1);
  EXPECT_EQ(WaitForName(), "a");
}

TEST_F(HeldDevicesTest, WhatTookItsPlaceMeanwhileIsWaitedFor) {
  kernel_.ConnectForeign(2, 4096, kOurs);
  kernel_.Hold(2);
  ASSERT_TRUE(kernel_.Disconnect(2).ok());
  kernel_.Release(1);
  kernel_.Block(FakeNbdKernel::Call::kInspect);
  held_.Watch("a", {1, kOurs});
  ASSERT_TRUE(kernel_.WaitUntilBlocked(FakeNbdKernel::Call::kInspect));
  held_.Watch("a", {2, kOurs});
  kernel_.Unblock(FakeNbdKernel::Call::kInspect);
  kernel_.Release(2);
  EXPECT_EQ(WaitForName(), "a");
  EXPECT_EQ(told_of_, 2u);
}

TEST_F(HeldDevicesTest, StopsWhileADeviceIsHeld) {
  held_.Watch("a", {1, kOurs});
  held_.Stop();
  kernel_.Release(1);
  EXPECT_EQ(held_.size(), 1u);
}

}  // namespace
}  // namespace berth::control
