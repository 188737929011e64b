// Requests that the device does not complete in time.

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <future>
#include <vector>

#include "absl/time/time.h"
#include "nbd/session_fixture.h"

namespace berth::nbd {
namespace {

// The deadline passes for what is held, and for nothing else, as that completes in a turn or two.
class SessionDeadlineTest : public SessionTest {
 protected:
  void SetUp() override {
    SessionTest::SetUp();
    options_.request_deadline = absl::Milliseconds(300);
  }

  bool Send(Command command, uint64_t cookie, uint64_t length, const std::vector<uint8_t>& payload = {}) {
    return client_->Send({0, command, cookie, 0, length}, payload);
  }
  void ExpectReply(uint64_t cookie, Error error) {
    const SimpleReply reply = client_->ReceiveSimple();
    EXPECT_EQ(reply.cookie, cookie);
    EXPECT_EQ(reply.error, error);
  }
};

TEST_F(SessionDeadlineTest, AnOverdueRequestIsAnErrorAndOthersAreServed) {
  Start();
  faulty_->Hold(FaultyDevice::kRead);
  ASSERT_TRUE(Send(Command::kRead, 1, 4096));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kRead, 1));
  EXPECT_EQ(Write(8192, std::vector<uint8_t>(512, 7)), Error::kNone);
  ExpectReply(1, Error::kIo);
  EXPECT_EQ(Ask(Command::kFlush, 0, 0), Error::kNone);
  // What the device says later is not heard: the next reply is the next request's.
  faulty_->Release(FaultyDevice::kRead);
  EXPECT_EQ(Read(8192, 512), std::vector<uint8_t>(512, 7));
}

// The device owns the buffer until it completes: what it then writes is what was sent.
TEST_F(SessionDeadlineTest, ALateWriteHasItsOwnData) {
  Start();
  faulty_->Hold(FaultyDevice::kWrite);
  const std::vector<uint8_t> large(1 << 20, 9);
  ASSERT_TRUE(Send(Command::kWrite, 1, large.size(), large));
  ExpectReply(1, Error::kIo);
  // Buffers of the same size come and go meanwhile.
  for (int i = 0; i < 8; ++i) EXPECT_EQ(Read(16 << 20, large.size()), std::vector<uint8_t>(large.size()));
  faulty_->Release(FaultyDevice::kWrite);
  std::vector<uint8_t> content;
  for (int i = 0; i < 1000 && content != large; ++i) content = Read(0, large.size());
  EXPECT_EQ(content, large);
}

// A device that hangs for good costs what a connection may have, and no more; and reading never stops.
TEST_F(SessionDeadlineTest, WhatHangsIsBounded) {
  options_.max_requests_in_flight = 4;
  Start();
  faulty_->Hold(FaultyDevice::kWrite);
  const std::vector<uint8_t> block(512, 1);
  for (uint64_t cookie = 0; cookie < 4; ++cookie) ASSERT_TRUE(Send(Command::kWrite, cookie, 512, block));
  for (uint64_t cookie = 0; cookie < 4; ++cookie) ExpectReply(cookie, Error::kIo);
  // No slot is left: refused at once, large payloads included, whatever the command.
  const std::vector<uint8_t> large(1 << 20, 9);
  for (uint64_t cookie = 10; cookie < 14; ++cookie) {
    ASSERT_TRUE(Send(Command::kWrite, cookie, large.size(), large));
    ExpectReply(cookie, Error::kIo);
    ASSERT_TRUE(Send(Command::kRead, cookie + 100, 512));
    ExpectReply(cookie + 100, Error::kIo);
  }
  EXPECT_EQ(faulty_->count(FaultyDevice::kWrite), 4u);
  EXPECT_EQ(faulty_->count(FaultyDevice::kRead), 0u);
  faulty_->Release(FaultyDevice::kWrite);
  Error error = Error::kIo;
  for (int i = 0; i < 1000 && error != Error::kNone; ++i) error = Write(0, block);
  EXPECT_EQ(error, Error::kNone);
  EXPECT_EQ(Read(0, 512), block);
}

// The end waits for the device, which has the buffer.
TEST_F(SessionDeadlineTest, TheEndWaitsForWhatIsOverdue) {
  Start();
  faulty_->Hold(FaultyDevice::kRead);
  ASSERT_TRUE(Send(Command::kRead, 1, 4096));
  ExpectReply(1, Error::kIo);
  client_->Close();
  session_->Abort();
  FinishTurn();
  std::future<void> end = TakeEnd();
  EXPECT_EQ(end.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  faulty_->Release(FaultyDevice::kRead);
  EXPECT_EQ(end.wait_for(std::chrono::seconds(60)), std::future_status::ready);
}

}  // namespace
}  // namespace berth::nbd
