// The values are written out by hand, from proto.md's "Transmission flags".
#include "nbd/capabilities.h"

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "image/block/block_device.h"

namespace berth::nbd {
namespace {

// Has, flush, FUA, cache, and what needs no trait of a device that can be written: write zeroes.
constexpr uint16_t kReadable = 0x0001 | 0x0004 | 0x0008 | 0x0400;
constexpr uint16_t kWritable = kReadable | 0x0040;
constexpr uint16_t kReadOnly = 0x0002, kRotational = 0x0010, kTrim = 0x0020, kDf = 0x0080,
                   kMultiConn = 0x0100, kFastZero = 0x0800;

class Described final : public BlockDevice {
 public:
  explicit Described(const BlockTraits& traits) : traits_(traits) {}
  const BlockTraits& traits() const override { return traits_; }
  uint64_t size() const override { return 4096; }
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor&) override {
    return absl::UnimplementedError("it has no data");
  }
  absl::Status Resize(uint64_t) override { return absl::UnimplementedError("it has no data"); }

 private:
  const BlockTraits traits_;
};

// Traits of which nothing is promised.
BlockTraits Plain() {
  BlockTraits traits;
  traits.read_only = traits.rotational = traits.can_discard = traits.fast_zero = false;
  traits.flush_covers_all_channels = false;
  return traits;
}

uint16_t Flags(const BlockTraits& traits, bool multi_connection = false, bool read_only = false,
               ReplyStyle style = ReplyStyle::kSimple, bool has_contexts = false) {
  Export served;
  served.device = std::make_shared<Described>(traits);
  served.multi_connection = multi_connection;
  served.read_only = read_only;
  return TransmissionFlags(served, style, has_contexts);
}

TEST(CapabilitiesTest, NothingIsPromisedThatTheDeviceDoesNotSay) {
  EXPECT_EQ(Flags(Plain()), kWritable);
  BlockTraits traits = Plain();
  traits.rotational = true;
  EXPECT_EQ(Flags(traits), kWritable | kRotational);
  traits = Plain();
  traits.can_discard = true;
  EXPECT_EQ(Flags(traits), kWritable | kTrim);
  traits = Plain();
  traits.fast_zero = true;
  EXPECT_EQ(Flags(traits), kWritable | kFastZero);
}

// "NBD_FLAG_SEND_RESIZE": where the device can, the export lets clients, and they may write.
TEST(CapabilitiesTest, ResizeNeedsTheDeviceAndTheExport) {
  constexpr uint16_t kResize = 0x0200;
  const auto flags = [](bool resizable, bool allowed, bool read_only) {
    BlockTraits traits = Plain();
    traits.resizable = resizable;
    Export served;
    served.device = std::make_shared<Described>(traits);
    served.read_only = read_only;
    if (allowed) served.resize = [](uint64_t) { return absl::OkStatus(); };
    return TransmissionFlags(served, ReplyStyle::kSimple);
  };
  EXPECT_EQ(flags(true, false, false), kWritable);
  EXPECT_EQ(flags(false, true, false), kWritable);
  EXPECT_EQ(flags(true, true, false), kWritable | kResize);
  EXPECT_EQ(flags(true, true, true), kReadable | kReadOnly);
}

// "NBD_FLAG_CAN_MULTI_CONN": a flush on one connection covers the completed writes of all.
TEST(CapabilitiesTest, SeveralConnectionsNeedTheDeviceAndTheExport) {
  BlockTraits traits = Plain();
  EXPECT_EQ(Flags(traits, true), kWritable);
  traits.flush_covers_all_channels = true;
  EXPECT_EQ(Flags(traits, false), kWritable);
  EXPECT_EQ(Flags(traits, true), kWritable | kMultiConn);
  EXPECT_EQ(Flags(traits, true, true), kReadable | kReadOnly | kMultiConn);
}

TEST(CapabilitiesTest, ReadOnlyByTheExportOrByTheDevice) {
  BlockTraits traits = Plain();
  traits.can_discard = traits.fast_zero = true;
  EXPECT_EQ(Flags(traits, false, true), kReadable | kReadOnly);
  traits.read_only = true;
  EXPECT_EQ(Flags(traits), kReadable | kReadOnly);
}

TEST(CapabilitiesTest, DontFragmentNeedsStructuredReplies) {
  EXPECT_EQ(Flags(Plain(), false, false, ReplyStyle::kSimple), kWritable);
  EXPECT_EQ(Flags(Plain(), false, false, ReplyStyle::kStructured), kWritable | kDf);
}

// "NBD_FLAG_BLOCK_STATUS_PAYLOAD": with extended headers and a context.
TEST(CapabilitiesTest, StatusPayloadNeedsExtendedHeadersAndAContext) {
  constexpr uint16_t kStatusPayload = 0x1000;
  EXPECT_EQ(Flags(Plain(), false, false, ReplyStyle::kExtended), kWritable | kDf);
  EXPECT_EQ(Flags(Plain(), false, false, ReplyStyle::kStructured, true), kWritable | kDf);
  EXPECT_EQ(Flags(Plain(), false, false, ReplyStyle::kExtended, true), kWritable | kDf | kStatusPayload);
  EXPECT_EQ(Flags(Plain(), false, true, ReplyStyle::kExtended, true),
            kReadable | kReadOnly | kDf | kStatusPayload);
}

}  // namespace
}  // namespace berth::nbd
