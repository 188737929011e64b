#include "control/request_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <memory>

#include "absl/time/clock.h"

namespace berth::control {
namespace {

using nbd::Operation;
using testing::HasSubstr;

class RequestWatchTest : public testing::Test {
 protected:
  void Complete(Operation operation, IoResult result) {
    watch_.Completed(operation, 512, absl::Milliseconds(1), result);
  }

  EventHub events_{10, "server"};
  RequestWatch watch_{"disk", std::make_shared<ExportMetrics>(), &events_};
};

TEST_F(RequestWatchTest, AFailingDiskIsOneEventAndNotOneARequest) {
  Complete(Operation::kRead, IoResult::Ok());
  EXPECT_EQ(events_.last_sequence(), 0u);
  for (int i = 0; i < 1000; ++i) Complete(Operation::kWrite, IoResult::Error(EIO));
  EXPECT_EQ(events_.last_sequence(), 1u);
  const auto event = events_.WaitForNext(0, absl::Now());
  ASSERT_TRUE(event.ok() && event->has_value());
  EXPECT_EQ((*event)->type(), v1::EVENT_TYPE_IO_ERROR);
  EXPECT_EQ((*event)->export_(), "disk");
  EXPECT_THAT((*event)->message(), HasSubstr("write failed"));
  EXPECT_THAT((*event)->message(), HasSubstr("Input/output error"));
}

TEST_F(RequestWatchTest, AnImageThatHangsIsNamed) {
  Complete(Operation::kFlush, IoResult::Error(ETIMEDOUT));
  const auto event = events_.WaitForNext(0, absl::Now());
  ASSERT_TRUE(event.ok() && event->has_value());
  EXPECT_EQ((*event)->type(), v1::EVENT_TYPE_IO_ERROR);
  EXPECT_EQ((*event)->export_(), "disk");
  EXPECT_THAT((*event)->message(), HasSubstr("flush was not completed by the image in time"));
}

TEST_F(RequestWatchTest, WhatWasNeverPossibleIsNoFailingDisk) {
  for (const int error : {ENOTSUP, EPERM, ESHUTDOWN}) Complete(Operation::kZero, IoResult::Error(error));
  EXPECT_EQ(events_.last_sequence(), 0u);
}

}  // namespace
}  // namespace berth::control
