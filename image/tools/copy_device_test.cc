#include "image/tools/copy_device.h"

#include <cerrno>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/fakes/faulty_device.h"

namespace berth {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMebibyte = uint64_t{1} << 20;
constexpr uint64_t kSize = 8 * kMebibyte;

class CopyDeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    reactors_ = *ReactorPool::Create(1);
    source_ = Make(kSize);
    target_ = Make(kSize);
  }

  static std::shared_ptr<FaultyDevice> Make(uint64_t size) {
    return std::make_shared<FaultyDevice>(std::shared_ptr<BlockDevice>(*MemoryDevice::Create(size)));
  }

  void Fill(BlockDevice& device, uint64_t offset, size_t length, uint8_t byte) {
    BlockingChannel channel(device, reactor());
    EXPECT_TRUE(channel.Write(offset, std::vector<uint8_t>(length, byte)).ok());
  }

  std::vector<uint8_t> Content(BlockDevice& device) {
    BlockingChannel channel(device, reactor());
    return channel.Read(0, static_cast<size_t>(device.size()));
  }

  absl::Status CopyAll(const CopyOptions& options = {}) {
    return CopyDevice(*source_, *target_, reactor(), options, progress_);
  }

  Reactor& reactor() { return reactors_->at(0); }

  std::unique_ptr<ReactorPool> reactors_;
  std::shared_ptr<FaultyDevice> source_;
  std::shared_ptr<FaultyDevice> target_;
  Progress progress_;
};

TEST_F(CopyDeviceTest, EveryByteArrives) {
  for (uint64_t at = 0; at < kSize; at += 300 * 1000)
    Fill(*source_, at, 70001, static_cast<uint8_t>(at / 1000));
  Fill(*source_, kSize - 1, 1, 0x77);
  Fill(*target_, 0, kSize, 0xaa);
  for (const size_t pieces : {size_t{1}, size_t{3}, size_t{64}}) {
    CopyOptions options;
    options.pieces = pieces;
    options.piece_bytes = 64 << 10;
    ASSERT_EQ(CopyAll(options), absl::OkStatus());
    EXPECT_EQ(Content(*target_), Content(*source_)) << pieces;
  }
}

TEST_F(CopyDeviceTest, HolesAreNotReadAndBecomeHoles) {
  Fill(*source_, kMebibyte, 4096, 1);
  Fill(*target_, 0, kSize, 0xaa);
  ASSERT_EQ(CopyAll(), absl::OkStatus());
  EXPECT_EQ(Content(*target_), Content(*source_));
  EXPECT_EQ(source_->count(FaultyDevice::kRead), 1 + 1);   // The copy's, and Content()'s.
  EXPECT_EQ(target_->count(FaultyDevice::kWrite), 1 + 1);  // Fill()'s, and the copy's.
}

TEST_F(CopyDeviceTest, ZeroesInDataAreNotWrittenToATargetThatIsZero) {
  Fill(*source_, 0, kMebibyte, 0);
  Fill(*source_, 512 << 10, 4096, 1);
  CopyOptions options;
  options.target_is_zero = true;
  ASSERT_EQ(CopyAll(options), absl::OkStatus());
  EXPECT_EQ(Content(*target_), Content(*source_));
  EXPECT_EQ(target_->count(FaultyDevice::kWrite), 1);
  EXPECT_EQ(target_->count(FaultyDevice::kZero), 0);
  // Looked at in its whole, the piece is data.
  options.zero_block_bytes = 0;
  target_ = Make(kSize);
  ASSERT_EQ(CopyAll(options), absl::OkStatus());
  EXPECT_EQ(Content(*target_), Content(*source_));
}

TEST_F(CopyDeviceTest, WhatATargetHasBeyondTheSourceIsZeroed) {
  target_ = Make(kSize + kMebibyte);
  Fill(*target_, 0, kSize + kMebibyte, 0xaa);
  Fill(*source_, 0, 4096, 1);
  ASSERT_EQ(CopyAll(), absl::OkStatus());
  std::vector<uint8_t> expected = Content(*source_);
  expected.resize(kSize + kMebibyte, 0);
  EXPECT_EQ(Content(*target_), expected);
}

TEST_F(CopyDeviceTest, ATargetThatIsTooSmallIsRefused) {
  target_ = Make(kSize - 1);
  const absl::Status status = CopyAll();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the target has 8388607 bytes, the source 8388608"));
}

TEST_F(CopyDeviceTest, ProgressCountsData) {
  Fill(*source_, 0, 3 * kMebibyte, 1);
  ASSERT_EQ(CopyAll(), absl::OkStatus());
  EXPECT_EQ(progress_.total(), 3 * kMebibyte);
  EXPECT_EQ(progress_.done(), 3 * kMebibyte);
}

TEST_F(CopyDeviceTest, ErrorsNameTheSideAndThePlace) {
  Fill(*source_, kMebibyte, 4096, 1);
  source_->Fail(FaultyDevice::kRead, EIO, 1);
  EXPECT_THAT(std::string(CopyAll().message()),
              HasSubstr("a read of the source at offset 1048576, length 4096"));
  target_->Fail(FaultyDevice::kWrite, ENOSPC, 1);
  const absl::Status full = CopyAll();
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(std::string(full.message()), HasSubstr("a write to the target at offset 1048576, length 4096"));
  target_->Fail(FaultyDevice::kZero, EIO, 1);
  EXPECT_THAT(std::string(CopyAll().message()),
              HasSubstr("zeroes to the target at offset 0, length 1048576"));
  source_->Fail(FaultyDevice::kExtents, EIO, 1);
  EXPECT_THAT(std::string(CopyAll().message()), HasSubstr("the source's extents at offset 0"));
  target_->Fail(FaultyDevice::kFlush, EIO, 1);
  EXPECT_THAT(std::string(CopyAll().message()), HasSubstr("the flush of the target"));
}

// So many pieces are under way and no more; a cancellation waits for those and starts none.
TEST_F(CopyDeviceTest, PiecesAreBoundedAndCancelled) {
  Fill(*source_, 0, kSize, 1);
  CopyOptions options;
  options.pieces = 3;
  source_->Hold(FaultyDevice::kRead);
  std::future<absl::Status> copy = std::async(std::launch::async, [&] { return CopyAll(options); });
  ASSERT_TRUE(source_->WaitUntilHeld(FaultyDevice::kRead, 3));
  EXPECT_EQ(source_->count(FaultyDevice::kRead), 3);
  progress_.Cancel();
  source_->Release(FaultyDevice::kRead);
  EXPECT_TRUE(absl::IsCancelled(copy.get()));
  EXPECT_EQ(source_->count(FaultyDevice::kRead), 3);
  EXPECT_EQ(target_->count(FaultyDevice::kFlush), 0);
}

}  // namespace
}  // namespace berth
