// What a session does about sizes: blocks that are kept, and NBD_CMD_RESIZE.
#include <atomic>
#include <future>

#include "nbd/session.h"
#include "nbd/session_fixture.h"

namespace berth::nbd {
namespace {

class SessionSizeTest : public SessionTest {};

// "Size constraints": "MUST cleanly error commands that fall outside the constraints without corrupting
// data".
TEST_F(SessionSizeTest, BlocksAreKept) {
  negotiated_.block_sizes = {.minimum = 4096, .maximum_payload = 1 << 20};
  Start();
  const std::vector<uint8_t> data = Pattern(8192, 1);
  EXPECT_EQ(Write(4096, data), Error::kNone);
  EXPECT_EQ(Write(4096 + 512, data), Error::kInval);
  EXPECT_EQ(Write(4096, Pattern(512, 2)), Error::kInval);
  EXPECT_EQ(Write(0, Pattern((1 << 20) + 4096, 2)), Error::kInval);
  EXPECT_EQ(Ask(Command::kTrim, 4096, 512), Error::kInval);
  EXPECT_EQ(Ask(Command::kWriteZeroes, 1, 4096), Error::kInval);
  EXPECT_EQ(Ask(Command::kRead, 0, 512), Error::kInval);
  EXPECT_EQ(Ask(Command::kRead, 0, 2 << 20), Error::kInval);
  EXPECT_EQ(Read(4096, 8192), data);
}

TEST_F(SessionSizeTest, WhatFillsNoBlockIsNotThere) {
  UseDevice(kSize + 512);
  negotiated_.block_sizes = {.minimum = 4096};
  Start();
  EXPECT_EQ(Read(kSize - 4096, 4096), std::vector<uint8_t>(4096));
  EXPECT_EQ(Ask(Command::kRead, kSize, 4096), Error::kInval);
  EXPECT_EQ(Ask(Command::kRead, kSize, 512), Error::kInval);
}

// The kernel's block size is agreed on elsewhere, and an export's constraints are for those who were told
// them.
TEST_F(SessionSizeTest, TheKernelIsNotConstrained) {
  export_->block_sizes = {.minimum = 4096};
  Start();
  EXPECT_EQ(Write(512, Pattern(512, 1)), Error::kNone);
}

class SessionResizeTest : public SessionTest {
 protected:
  void SetUp() override {
    SessionTest::SetUp();
    export_->resize = [this](uint64_t size) {
      ++calls_;
      const absl::StatusCode answer = answer_;
      return answer == absl::StatusCode::kOk ? memory_->Resize(size) : absl::Status(answer, "why");
    };
  }
  Error Resize(uint64_t size, uint32_t length = 0) { return Ask(Command::kResize, size, length); }

  std::atomic<int> calls_ = 0;
  std::atomic<absl::StatusCode> answer_ = absl::StatusCode::kOk;
};

// "the field `offset` in the request header is used to signal the new requested size".
TEST_F(SessionResizeTest, LargerAndSmaller) {
  Start();
  EXPECT_EQ(Ask(Command::kRead, kSize, 512), Error::kInval);
  EXPECT_EQ(Resize(2 * kSize), Error::kNone);
  EXPECT_EQ(memory_->size(), 2 * kSize);
  EXPECT_EQ(Read(kSize, 512), std::vector<uint8_t>(512));
  EXPECT_EQ(Resize(kSize / 2), Error::kNone);
  // Between the new end and the old one; and behind both.
  EXPECT_EQ(Ask(Command::kRead, kSize, 512), Error::kNoSpc);
  EXPECT_EQ(Ask(Command::kTrim, kSize / 2, 512), Error::kNoSpc);
  EXPECT_EQ(Ask(Command::kRead, 2 * kSize, 512), Error::kInval);
  EXPECT_EQ(Resize(kSize), Error::kNone);
  EXPECT_EQ(Read(kSize - 512, 512), std::vector<uint8_t>(512));
}

TEST_F(SessionResizeTest, ErrorsOfAResize) {
  Start();
  const std::vector<std::pair<absl::StatusCode, Error>> errors = {
      {absl::StatusCode::kPermissionDenied, Error::kPerm},
      {absl::StatusCode::kFailedPrecondition, Error::kPerm},
      {absl::StatusCode::kResourceExhausted, Error::kNoSpc},
      {absl::StatusCode::kInvalidArgument, Error::kInval},
      {absl::StatusCode::kOutOfRange, Error::kInval},
      {absl::StatusCode::kUnavailable, Error::kShutdown},
      {absl::StatusCode::kDataLoss, Error::kIo}};
  for (const auto& [code, error] : errors) {
    answer_ = code;
    EXPECT_EQ(Resize(4096), error) << code;
  }
  EXPECT_EQ(memory_->size(), kSize);
  EXPECT_EQ(Ask(Command::kRead, kSize - 512, 512), Error::kNone) << "a resize that failed moved the end";
}

// The client is told why, and nothing that says nothing.
TEST_F(SessionResizeTest, AFailureSaysWhatFailed) {
  UseStructuredReplies(ReplyStyle::kStructured);
  answer_ = absl::StatusCode::kInvalidArgument;
  Start();
  ASSERT_TRUE(client_->Send({0, Command::kResize, 1, 4096, 0}));
  EXPECT_EQ(client_->ReceiveChunk().message(),
            absl::StrCat("a resize from ", kSize, " to 4096 bytes failed: why"));
}

TEST_F(SessionResizeTest, OnlyWhereTheExportAllowsIt) {
  export_->resize = nullptr;
  Start();
  EXPECT_EQ(Resize(2 * kSize), Error::kPerm);
  EXPECT_EQ(memory_->size(), kSize);
}

TEST_F(SessionResizeTest, NotOfAReadOnlyExport) {
  export_->read_only = true;
  Start();
  EXPECT_EQ(Resize(2 * kSize), Error::kPerm);
  EXPECT_EQ(calls_, 0);
}

// The reactor goes on while a resize takes its time.
TEST_F(SessionResizeTest, OthersAreServedMeanwhile) {
  std::promise<void> entered, leave;
  export_->resize = [&](uint64_t size) {
    entered.set_value();
    leave.get_future().wait();
    return memory_->Resize(size);
  };
  Start();
  ASSERT_TRUE(client_->Send({0, Command::kResize, 1, 2 * kSize, 0}));
  entered.get_future().wait();
  EXPECT_EQ(Read(0, 512), std::vector<uint8_t>(512));
  leave.set_value();
  EXPECT_EQ(client_->ReceiveSimple().cookie, 1u);
  EXPECT_EQ(Read(kSize, 512), std::vector<uint8_t>(512));
}

}  // namespace
}  // namespace berth::nbd
