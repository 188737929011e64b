// One request at a time: what each operation promises, at every kind of boundary.
#include <cerrno>
#include <vector>

#include "tests/conformance/block_device_conformance.h"

namespace berth {
namespace {

// Lengths and offsets beside the units that devices are made of: sectors, pages, clusters.
constexpr uint64_t kOddOffsets[] = {0, 1, 511, 512, 513, 4095, 4096, 4097, 65'535, 65'536, 65'537};
constexpr uint64_t kOddLengths[] = {1, 3, 511, 512, 513, 4096, 4099, 65'536, 70'001};

TEST_P(BlockDeviceConformance, TraitsMakeSense) {
  const BlockTraits& traits = device_->traits();
  EXPECT_NE(traits.preferred_alignment, 0u);
  EXPECT_EQ(traits.preferred_alignment & (traits.preferred_alignment - 1), 0u);
  EXPECT_EQ(&traits, &device_->traits());
  if (traits.read_only) {
    EXPECT_FALSE(traits.resizable);
    EXPECT_FALSE(traits.can_discard);
  }
}

TEST_P(BlockDeviceConformance, BeginsWithItsContent) {
  BlockingChannel channel(*device_, pool_->at(0));
  ExpectContent(channel, InitialModel());
}

TEST_P(BlockDeviceConformance, UnalignedReads) {
  BlockingChannel channel(*device_, pool_->at(0));
  const ReferenceModel model = InitialModel();
  for (uint64_t offset : kOddOffsets) {
    for (uint64_t length : kOddLengths) {
      ASSERT_TRUE(model.Agrees(offset, channel.Read(offset, length)));
      ASSERT_TRUE(model.Agrees(size() - offset - length, channel.Read(size() - offset - length, length)));
    }
  }
}

TEST_P(BlockDeviceConformance, ReadsOfTheWholeDevice) {
  BlockingChannel channel(*device_, pool_->at(0));
  EXPECT_TRUE(InitialModel().Agrees(0, channel.Read(0, size())));
  EXPECT_TRUE(channel.Prefetch(0, size()).ok());
  EXPECT_TRUE(channel.Flush().ok());
}

TEST_P(BlockDeviceConformance, ExtentsOfUntouchedContent) {
  BlockingChannel channel(*device_, pool_->at(0));
  ExpectValidExtents(channel, 0, size());
  ExpectValidExtents(channel, 0, 1);
  ExpectValidExtents(channel, size() - 1, 1);
  ExpectValidExtents(channel, size() / 3 - 1, 2);
  ExpectValidExtents(channel, 511, 70'001);
}

TEST_P(BlockDeviceConformance, UnalignedWritesLeaveNeighboursAlone) {
  if (!writable()) return;
  BlockingChannel channel(*device_, pool_->at(0));
  ReferenceModel model = InitialModel();
  const std::vector<uint8_t> background = PatternBytes(0, 512 * 1024, 1);
  ASSERT_TRUE(channel.Write(0, background).ok());
  model.Write(0, background);
  uint64_t seed = 2;
  for (uint64_t offset : kOddOffsets) {
    for (uint64_t length : kOddLengths) {
      const WriteFlags flags = seed % 3 == 0 ? WriteFlags::kFua : WriteFlags::kNone;
      const std::vector<uint8_t> data = PatternBytes(offset, length, seed++);
      ASSERT_TRUE(channel.Write(offset, data, flags).ok());
      model.Write(offset, data);
      ASSERT_TRUE(model.Agrees(0, channel.Read(0, 256 * 1024))) << "write of " << offset << "+" << length;
      // The same at the end, where nothing was written before.
      const uint64_t at = size() - offset - length;
      ASSERT_TRUE(channel.Write(at, data, flags).ok());
      model.Write(at, data);
      ASSERT_TRUE(model.Agrees(size() - 256 * 1024, channel.Read(size() - 256 * 1024, 256 * 1024)))
          << "write of " << at << "+" << length;
    }
  }
  ExpectContent(channel, model);
  EXPECT_EQ(device_->size(), size());
}

TEST_P(BlockDeviceConformance, FirstAndLastByte) {
  if (!writable()) return;
  BlockingChannel channel(*device_, pool_->at(0));
  ReferenceModel model = InitialModel();
  const uint8_t byte = 0xa5;
  for (uint64_t offset : {uint64_t{0}, size() - 1}) {
    ASSERT_TRUE(channel.Write(offset, absl::MakeConstSpan(&byte, 1)).ok());
    model.Write(offset, absl::MakeConstSpan(&byte, 1));
    EXPECT_TRUE(model.Agrees(offset, channel.Read(offset, 1)));
  }
  ExpectContent(channel, model);
  for (uint64_t offset : {uint64_t{0}, size() - 1}) {
    ASSERT_TRUE(channel.Zero(offset, 1).ok());
    model.Zero(offset, 1);
  }
  ExpectContent(channel, model);
}

TEST_P(BlockDeviceConformance, WritesOfTheWholeDevice) {
  if (!writable()) return;
  BlockingChannel channel(*device_, pool_->at(0));
  ReferenceModel model = InitialModel();
  const std::vector<uint8_t> data = PatternBytes(0, size(), 3);
  ASSERT_TRUE(channel.Write(0, data).ok());
  model.Write(0, data);
  EXPECT_TRUE(model.Agrees(0, channel.Read(0, size())));
  ExpectValidExtents(channel, 0, size());
  ASSERT_TRUE(channel.Zero(0, size()).ok());
  model.Zero(0, size());
  EXPECT_TRUE(model.Agrees(0, channel.Read(0, size())));
  ExpectValidExtents(channel, 0, size());
  EXPECT_EQ(device_->size(), size());
}

TEST_P(BlockDeviceConformance, ZeroWithEachFlag) {
  if (!writable()) return;
  // The ranges and their neighbours lie in the first and the last part.
  constexpr uint64_t kPart = 400'000;
  BlockingChannel channel(*device_, pool_->at(0));
  ReferenceModel model = InitialModel();
  for (uint8_t bits = 0; bits < 8; ++bits) {
    SCOPED_TRACE(testing::Message() << "flags " << int{bits});
    const auto flags = static_cast<ZeroFlags>(bits);
    for (uint64_t offset : {uint64_t{0}, size() - kPart}) {
      const std::vector<uint8_t> background = PatternBytes(offset, kPart, bits);
      ASSERT_TRUE(channel.Write(offset, background).ok());
      model.Write(offset, background);
    }
    // From parts of a sector to several clusters; the last twice, as it may be a hole by then.
    const std::vector<std::pair<uint64_t, uint64_t>> ranges = {
        {4096, 8192},      {20'001, 30}, {65'530, 12}, {100'003, 200'001}, {size() - 70'000, 70'000},
        {100'003, 200'001}};
    for (const auto& [offset, length] : ranges) {
      const IoResult result = channel.Zero(offset, length, flags);
      if (Has(flags, ZeroFlags::kFastOnly) && result.error == ENOTSUP) {
        // Allowed where writing would be as fast, and then nothing may have changed.
      } else {
        ASSERT_TRUE(result.ok()) << "zero of " << offset << "+" << length << ": errno " << result.error;
        model.Zero(offset, length);
      }
      const uint64_t part = offset < kPart ? 0 : size() - kPart;
      ASSERT_TRUE(model.Agrees(part, channel.Read(part, kPart))) << "zero of " << offset << "+" << length;
    }
    ExpectValidExtents(channel, 0, size());
    // What was zeroed can be written again.
    const std::vector<uint8_t> data = PatternBytes(0, 100'000, 90 + bits);
    ASSERT_TRUE(channel.Write(150'001, data).ok());
    model.Write(150'001, data);
    ExpectContent(channel, model);
  }
}

TEST_P(BlockDeviceConformance, DiscardTouchesItsRangeAlone) {
  if (!writable()) return;
  BlockingChannel channel(*device_, pool_->at(0));
  ReferenceModel model = InitialModel();
  const std::vector<uint8_t> background = PatternBytes(0, size(), 4);
  ASSERT_TRUE(channel.Write(0, background).ok());
  model.Write(0, background);
  const std::vector<std::pair<uint64_t, uint64_t>> ranges = {
      {0, 1},      {511, 2}, {4096, 4096}, {8191, 4098}, {65'537, 300'001}, {size() - 100'001, 100'001},
      {4096, 4096}};
  for (const auto& [offset, length] : ranges) {
    ASSERT_TRUE(channel.Discard(offset, length).ok()) << "discard of " << offset << "+" << length;
    model.Discard(offset, length);
    ExpectContent(channel, model);
  }
  EXPECT_EQ(device_->size(), size());
  ExpectValidExtents(channel, 0, size());
  const std::vector<uint8_t> data = PatternBytes(0, 200'000, 5);
  ASSERT_TRUE(channel.Write(70'001, data).ok());
  model.Write(70'001, data);
  ASSERT_TRUE(channel.Zero(size() - 50'000, 50'000).ok());
  model.Zero(size() - 50'000, 50'000);
  ExpectContent(channel, model);
  ASSERT_TRUE(channel.Discard(0, size()).ok());
  EXPECT_EQ(device_->size(), size());
  EXPECT_EQ(channel.Read(0, size()).size(), size());
}

TEST_P(BlockDeviceConformance, ExtentsOfAPatchwork) {
  if (!writable()) return;
  BlockingChannel channel(*device_, pool_->at(0));
  for (uint64_t offset = 65'536; offset + 65'536 < size(); offset += 3 * 65'536) {
    ASSERT_TRUE(channel.Write(offset, PatternBytes(offset, 65'536, 6)).ok());
  }
  ASSERT_TRUE(channel.Zero(1 << 20, 1 << 20).ok());
  ASSERT_TRUE(channel.Zero((1 << 20) + 131'072, 65'536, ZeroFlags::kNoUnmap).ok());
  ExpectValidExtents(channel, 0, size());
  for (uint64_t offset : kOddOffsets) ExpectValidExtents(channel, offset, size() - 2 * offset);
}

TEST_P(BlockDeviceConformance, AFlushOnOneChannelFollowsWritesOnAnother) {
  if (!writable()) return;
  BlockingChannel writer(*device_, pool_->at(0));
  BlockingChannel other(*device_, pool_->at(1));
  ReferenceModel model = InitialModel();
  const std::vector<uint8_t> data = PatternBytes(0, 10'000, 7);
  ASSERT_TRUE(writer.Write(1234, data).ok());
  model.Write(1234, data);
  EXPECT_TRUE(other.Flush().ok());
  EXPECT_TRUE(model.Agrees(0, other.Read(0, 20'000)));
  EXPECT_TRUE(writer.Flush().ok());
}

TEST_P(BlockDeviceConformance, ResizeOfWhatCannot) {
  if (device_->traits().resizable) return;
  EXPECT_EQ(device_->Resize(size() + 4096).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(device_->Resize(size() - 4096).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(device_->size(), size());
}

TEST_P(BlockDeviceConformance, NewSpaceReadsAsZeroes) {
  if (!device_->traits().resizable) return;
  BlockingChannel channel(*device_, pool_->at(0));
  ReferenceModel model = InitialModel();
  const std::vector<uint8_t> data = PatternBytes(0, size(), 8);
  ASSERT_TRUE(channel.Write(0, data).ok());
  model.Write(0, data);
  const uint64_t half = size() / 2 / 512 * 512;
  for (uint64_t new_size : {size() + 512, half, size() + 70'144, half + 512, half + 1024, size()}) {
    SCOPED_TRACE(testing::Message() << "resize to " << new_size);
    const absl::Status status = device_->Resize(new_size);
    ASSERT_TRUE(status.ok()) << status;
    model.Resize(new_size);
    ASSERT_EQ(device_->size(), new_size);
    ExpectContent(channel, model);
    ExpectValidExtents(channel, 0, new_size);
    // A channel that was opened after the resize sees the same.
    BlockingChannel later(*device_, pool_->at(1));
    ExpectContent(later, model);
  }
}

}  // namespace
}  // namespace berth
