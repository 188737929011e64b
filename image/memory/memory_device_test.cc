#include "image/memory/memory_device.h"

#include <cerrno>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"

namespace berth {
namespace {

constexpr uint64_t kPage = SparsePages::kPageSize;

class MemoryDeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }

  // Runs `use(channel)` on the reactor.
  template <typename Use>
  void OnChannel(MemoryDevice& device, Use use) {
    auto run = [&]() -> Task<void> {
      auto channel = device.OpenChannel(pool_->at(0));
      EXPECT_TRUE(channel.ok()) << channel.status();
      if (channel.ok()) co_await use(**channel);
    };
    RunOn(pool_->at(0), run);
  }

  std::unique_ptr<ReactorPool> pool_;
};

TEST_F(MemoryDeviceTest, MemoryIsTakenByWritesAndGivenBack) {
  auto device = MemoryDevice::Create(uint64_t{1} << 40);
  ASSERT_TRUE(device.ok()) << device.status();
  OnChannel(**device, [&](BlockChannel& channel) -> Task<void> {
    const std::vector<uint8_t> data(3 * kPage, 7);
    EXPECT_TRUE((co_await channel.Write((uint64_t{1} << 39) + 5, data, WriteFlags::kNone)).ok());
    EXPECT_EQ((*device)->allocated_bytes(), 4 * kPage);
    // The edges' pages keep the bytes beside the range.
    EXPECT_TRUE((co_await channel.Zero((uint64_t{1} << 39) + 10, 3 * kPage - 10, ZeroFlags::kNone)).ok());
    EXPECT_EQ((*device)->allocated_bytes(), 2 * kPage);
    EXPECT_TRUE((co_await channel.Discard(0, uint64_t{1} << 40)).ok());
    EXPECT_EQ((*device)->allocated_bytes(), 0u);
  });
}

TEST_F(MemoryDeviceTest, ExtentsAreExactToThePage) {
  auto device = MemoryDevice::Create(uint64_t{1} << 44);
  ASSERT_TRUE(device.ok()) << device.status();
  OnChannel(**device, [&](BlockChannel& channel) -> Task<void> {
    const std::vector<uint8_t> data(kPage, 7);
    EXPECT_TRUE((co_await channel.Write(5 * kPage, data, WriteFlags::kNone)).ok());
    EXPECT_TRUE((co_await channel.Zero(6 * kPage, 2 * kPage, ZeroFlags::kNoUnmap)).ok());
    std::vector<Extent> extents;
    EXPECT_TRUE((co_await channel.Extents(100, (uint64_t{1} << 44) - 100, &extents)).ok());
    EXPECT_EQ(extents.size(), 3u);
    if (extents.size() != 3) co_return;
    EXPECT_EQ(extents[0], (Extent{5 * kPage - 100, false, true}));
    EXPECT_EQ(extents[1], (Extent{3 * kPage, true, false}));
    EXPECT_EQ(extents[2], (Extent{(uint64_t{1} << 44) - 8 * kPage, false, true}));
  });
}

TEST_F(MemoryDeviceTest, WhatLiesPastAShrunkEndFails) {
  auto device = MemoryDevice::Create(4 * kPage);
  ASSERT_TRUE(device.ok()) << device.status();
  OnChannel(**device, [&](BlockChannel& channel) -> Task<void> {
    std::vector<uint8_t> data(2 * kPage, 7);
    EXPECT_TRUE((co_await channel.Write(0, data, WriteFlags::kNone)).ok());
    EXPECT_TRUE((*device)->Resize(kPage + 1).ok());
    EXPECT_EQ(co_await channel.Read(0, absl::MakeSpan(data)), IoResult::Error(EIO));
    EXPECT_EQ(co_await channel.Write(0, data, WriteFlags::kNone), IoResult::Error(EIO));
    EXPECT_EQ(co_await channel.Zero(kPage, 2, ZeroFlags::kNone), IoResult::Error(EIO));
    std::vector<Extent> extents;
    EXPECT_EQ(co_await channel.Extents(kPage, 2, &extents), IoResult::Error(EIO));
  });
}

// A write, or a zero that keeps its space, may be half done when the end moves before what is left of it.
TEST_F(MemoryDeviceTest, NothingIsLeftBehindAnEndThatMovesUnderWrites) {
  constexpr uint64_t kPages = 4096;
  auto device = MemoryDevice::Create(kPages * kPage);
  ASSERT_TRUE(device.ok()) << device.status();
  const std::vector<uint8_t> data(kPages * kPage, 7);
  int cut_short = 0;
  for (int round = 0; round < 60; ++round) {
    SCOPED_TRACE(round);
    std::thread resizer([&] {
      // Every page that exists was made by the operation of this round: it is under way.
      while ((*device)->allocated_bytes() == 0) std::this_thread::yield();
      EXPECT_TRUE((*device)->Resize(kPage + 1).ok());
    });
    OnChannel(**device, [&](BlockChannel& channel) -> Task<void> {
      const IoResult result = round % 2 == 0 ? co_await channel.Write(0, data, WriteFlags::kNone)
                                             : co_await channel.Zero(0, data.size(), ZeroFlags::kNoUnmap);
      EXPECT_TRUE(result.ok() || result.error == EIO) << result.error;
      cut_short += result.ok() ? 0 : 1;
    });
    resizer.join();
    EXPECT_LE((*device)->allocated_bytes(), 2 * kPage);
    EXPECT_TRUE((*device)->Resize(kPages * kPage).ok());
    OnChannel(**device, [&](BlockChannel& channel) -> Task<void> {
      std::vector<uint8_t> bytes(kPage - 1, 1);
      EXPECT_EQ(co_await channel.Read(kPage + 1, absl::MakeSpan(bytes)), IoResult::Ok());
      EXPECT_EQ(bytes, std::vector<uint8_t>(kPage - 1)) << "bytes behind the old end came back";
      EXPECT_EQ(co_await channel.Discard(0, kPages * kPage), IoResult::Ok());
    });
    ASSERT_EQ((*device)->allocated_bytes(), 0u);
  }
  RecordProperty("cut_short", cut_short);
}

TEST_F(MemoryDeviceTest, RefusesASizePastItsLimit) {
  const absl::Status status = MemoryDevice::Create((uint64_t{1} << 44) + 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("17592186044417"), absl::string_view::npos) << status;
  auto device = MemoryDevice::Create(0);
  ASSERT_TRUE(device.ok());
  EXPECT_EQ((*device)->Resize((uint64_t{1} << 44) + 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*device)->size(), 0u);
}

}  // namespace
}  // namespace berth
