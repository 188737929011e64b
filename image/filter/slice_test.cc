#include "image/filter/slice.h"

#include <cerrno>
#include <limits>
#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "image/null/null_device.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/fakes/recording_device.h"
#include "tests/fakes/status_device.h"

namespace berth {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSize = 1 << 20;

std::shared_ptr<BlockDevice> Memory() { return *MemoryDevice::Create(kSize); }

TEST(SliceTest, ShowsItsPartAndNothingElse) {
  auto pool = ReactorPool::Create(1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  std::shared_ptr<BlockDevice> whole = Memory();
  auto slice = SliceDevice::Create(whole, 1000, 500);
  ASSERT_TRUE(slice.ok()) << slice.status();
  EXPECT_EQ((*slice)->size(), 500u);
  BlockingChannel below(*whole, (*pool)->at(0));
  BlockingChannel part(**slice, (*pool)->at(0));
  ASSERT_TRUE(part.Write(0, std::vector<uint8_t>(500, 9)).ok());
  std::vector<uint8_t> expected(1600, 0);
  std::fill(expected.begin() + 1000, expected.begin() + 1500, 9);
  EXPECT_EQ(below.Read(0, 1600), expected);
  ASSERT_TRUE(part.Zero(0, 10).ok());
  std::fill(expected.begin() + 1000, expected.begin() + 1010, 0);
  EXPECT_EQ(below.Read(0, 1600), expected);
}

// Also where no byte shows it, as with a prefetch.
TEST(SliceTest, MovesEveryOperationToItsPlace) {
  auto pool = ReactorPool::Create(1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  const auto below = std::make_shared<RecordingDevice>(Memory());
  auto slice = SliceDevice::Create(below, 4096, 65536);
  ASSERT_TRUE(slice.ok()) << slice.status();
  BlockingChannel part(**slice, (*pool)->at(0));
  std::vector<Extent> extents;
  ASSERT_EQ(part.Read(512, 1024).size(), 1024u);
  ASSERT_TRUE(part.Write(512, std::vector<uint8_t>(1024, 1), WriteFlags::kFua).ok());
  ASSERT_TRUE(part.Zero(512, 1024, ZeroFlags::kNoUnmap).ok());
  ASSERT_TRUE(part.Discard(512, 1024).ok());
  ASSERT_TRUE(part.Prefetch(512, 1024).ok());
  ASSERT_TRUE(part.Extents(512, 1024, &extents).ok());
  std::vector<RecordingDevice::Kind> kinds;
  for (const RecordingDevice::Event& event : below->TakeEvents()) {
    if (event.phase == RecordingDevice::Phase::kEnd) continue;
    EXPECT_EQ(event.offset, 4096u + 512u) << event;
    EXPECT_EQ(event.length, 1024u) << event;
    kinds.push_back(event.kind);
  }
  using Kind = RecordingDevice::Kind;
  EXPECT_EQ(kinds, (std::vector<Kind>{Kind::kRead, Kind::kWrite, Kind::kZero, Kind::kDiscard, Kind::kPrefetch,
                                      Kind::kExtents}));
}

TEST(SliceTest, MovesItsContexts) {
  auto pool = ReactorPool::Create(1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  const auto below = std::make_shared<StatusDevice>(Memory());
  below->Offer("x-test:stripes", true, 1);
  auto slice = SliceDevice::Create(below, 3 * StatusDevice::kStripe, 0);
  ASSERT_TRUE(slice.ok()) << slice.status();
  const std::vector<std::shared_ptr<StatusContext>> contexts = (*slice)->contexts();
  ASSERT_EQ(contexts.size(), 1u);
  EXPECT_EQ(contexts[0]->name(), "x-test:stripes");
  EXPECT_TRUE(contexts[0]->wide());
  std::vector<StatusExtent> extents;
  RunOn((*pool)->at(0), [&]() -> Task<void> {
    auto channel = contexts[0]->Open((*pool)->at(0));
    EXPECT_TRUE(channel.ok()) << channel.status();
    const IoResult result = co_await (*channel)->Extents(1, StatusDevice::kStripe, &extents);
    EXPECT_TRUE(result.ok());
  });
  EXPECT_EQ(extents, (std::vector<StatusExtent>{{StatusDevice::kStripe - 1, 3}, {1, 4}}));
}

TEST(SliceTest, RefusesWhatLiesOutside) {
  const absl::Status past = SliceDevice::Create(Memory(), kSize + 1, 0).status();
  EXPECT_EQ(past.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(past.message()), HasSubstr("offset 1048577"));
  EXPECT_THAT(std::string(past.message()), HasSubstr("1048576 bytes"));
  const absl::Status longer = SliceDevice::Create(Memory(), kSize - 10, 11).status();
  EXPECT_EQ(longer.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(longer.message()), HasSubstr("at most 10"));
  constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
  EXPECT_FALSE(SliceDevice::Create(Memory(), 10, kMost).ok());
  EXPECT_FALSE(SliceDevice::Create(Memory(), kMost, kMost).ok());
  EXPECT_TRUE(SliceDevice::Create(Memory(), kSize - 10, 10).ok());
}

TEST(SliceTest, UpToTheEndFollowsTheImage) {
  std::shared_ptr<BlockDevice> whole = Memory();
  auto slice = SliceDevice::Create(whole, 4096, 0);
  ASSERT_TRUE(slice.ok()) << slice.status();
  EXPECT_TRUE((*slice)->traits().resizable);
  ASSERT_TRUE(whole->Resize(2 * kSize).ok());
  EXPECT_EQ((*slice)->size(), 2 * kSize - 4096);
  ASSERT_TRUE((*slice)->Resize(kSize).ok());
  EXPECT_EQ(whole->size(), kSize + 4096);
  ASSERT_TRUE(whole->Resize(100).ok());
  EXPECT_EQ((*slice)->size(), 0u);
  EXPECT_EQ((*slice)->Resize(std::numeric_limits<uint64_t>::max()).code(), absl::StatusCode::kOutOfRange);
}

TEST(SliceTest, AFixedLengthStays) {
  auto pool = ReactorPool::Create(1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  std::shared_ptr<BlockDevice> whole = Memory();
  auto slice = SliceDevice::Create(whole, 4096, 8192);
  ASSERT_TRUE(slice.ok()) << slice.status();
  EXPECT_FALSE((*slice)->traits().resizable);
  EXPECT_EQ((*slice)->Resize(4096).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(whole->Resize(8192).ok());
  EXPECT_EQ((*slice)->size(), 8192u);
  BlockingChannel part(**slice, (*pool)->at(0));
  std::vector<uint8_t> buffer(8192);
  EXPECT_EQ(part.Read(0, absl::MakeSpan(buffer)), IoResult::Error(EIO));
  EXPECT_TRUE(part.Read(0, absl::MakeSpan(buffer).subspan(0, 4096)).ok());
}

class AlignedDevice final : public ForwardingDevice {
 public:
  AlignedDevice() : ForwardingDevice(std::make_shared<NullDevice>(kSize)) {}
  const BlockTraits& traits() const override { return traits_; }

 private:
  const BlockTraits traits_ = {.preferred_alignment = 4096};
};

TEST(SliceTest, AlignmentIsThatOfItsOffset) {
  auto alignment = [](uint64_t offset) {
    return (*SliceDevice::Create(std::make_shared<AlignedDevice>(), offset, 0))->traits().preferred_alignment;
  };
  EXPECT_EQ(alignment(0), 4096u);
  EXPECT_EQ(alignment(8192), 4096u);
  EXPECT_EQ(alignment(512), 512u);
  EXPECT_EQ(alignment(4096 + 1024), 1024u);
  EXPECT_EQ(alignment(3), 1u);
}

}  // namespace
}  // namespace berth
