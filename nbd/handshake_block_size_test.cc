// "Size constraints", NBD_INFO_BLOCK_SIZE and NBD_REP_ERR_BLOCK_SIZE_REQD.
#include <memory>
#include <string>
#include <utility>

#include "image/block/block_device.h"
#include "nbd/handshake_fixture.h"

namespace berth::nbd {
namespace {

class HandshakeBlockSizeTest : public HandshakeTest {
 protected:
  // An export "sized" in the place of an earlier one, on a device that prefers `alignment`.
  void AddSized(const BlockSizes& sizes, uint32_t alignment = 1, uint64_t size = kSize) {
    // NullDevice's, but for the alignment.
    class Aligned final : public BlockDevice {
     public:
      Aligned(uint64_t size, uint32_t alignment) : null_(size), traits_(null_.traits()) {
        traits_.preferred_alignment = alignment;
      }
      const BlockTraits& traits() const override { return traits_; }
      uint64_t size() const override { return null_.size(); }
      absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override {
        return null_.OpenChannel(reactor);
      }
      absl::Status Resize(uint64_t new_size) override { return null_.Resize(new_size); }

     private:
      NullDevice null_;
      BlockTraits traits_;
    };
    auto added = std::make_shared<Export>();
    added->name = "sized";
    added->device = std::make_shared<Aligned>(size, alignment);
    added->block_sizes = sizes;
    exports_.Remove("sized");
    ASSERT_TRUE(exports_.Add(std::move(added)));
  }

  static std::string Described(uint32_t option, uint64_t size = kSize) {
    return Reply(option, kInfo, U16(0) + SizeAndFlags(0, size));
  }
  static std::string Sizes(uint32_t option, uint32_t minimum, uint32_t preferred, uint32_t maximum) {
    return Reply(option, kInfo, U16(3) + U32(minimum) + U32(preferred) + U32(maximum));
  }
};

constexpr uint16_t kBlockSizeInfo = 3;
constexpr BlockSizes kStrict = {.minimum = 4096, .maximum_payload = 1 << 20, .must_be_asked_for = true};

// The preferred block size is the device's.
TEST_F(HandshakeBlockSizeTest, TheDevicePrefers) {
  for (const auto& [alignment, preferred] :
       {std::pair<uint32_t, uint32_t>{1, 4096}, {4096, 4096}, {65536, 65536}, {2 << 20, 2 << 20}}) {
    AddSized({}, alignment);
    Connect();
    EXPECT_EQ(Send(Opt(kInfoOption, Wish("sized", {kBlockSizeInfo}))),
              Described(kInfoOption) + Sizes(kInfoOption, 1, preferred, 32 << 20) + Reply(kInfoOption, kAck));
  }
}

// "MUST do so unless it has agreed on size constraints via out of band means": also to those who did not ask.
TEST_F(HandshakeBlockSizeTest, ConstraintsAreToldToEverybody) {
  AddSized({.minimum = 512, .preferred = 8192, .maximum_payload = 1 << 20});
  Connect();
  EXPECT_EQ(Send(Opt(kGoOption, Wish("sized"))),
            Described(kGoOption) + Sizes(kGoOption, 512, 8192, 1 << 20) + Reply(kGoOption, kAck));
  const Negotiated negotiated = handshake_->TakeNegotiated();
  EXPECT_EQ(negotiated.block_sizes.minimum, 512u);
  EXPECT_EQ(negotiated.block_sizes.maximum_payload, 1u << 20);
}

// "the advertised export size SHOULD be an integer multiple of that block size".
TEST_F(HandshakeBlockSizeTest, TheSizeIsOfWholeBlocks) {
  AddSized({.minimum = 4096}, 1, kSize + 4095);
  Connect();
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("sized", {kBlockSizeInfo}))),
            Described(kInfoOption) + Sizes(kInfoOption, 4096, 4096, 32 << 20) + Reply(kInfoOption, kAck));
  EXPECT_EQ(Send(Opt(kExportNameOption, "sized")), SizeAndFlags());
}

// NBD_REP_ERR_BLOCK_SIZE_REQD, after the sizes, "to help avoid a potentially unnecessary round trip".
TEST_F(HandshakeBlockSizeTest, WhoDoesNotAskIsRefused) {
  AddSized(kStrict);
  Connect();
  for (const uint32_t option : {kInfoOption, kGoOption}) {
    const std::string answer = Send(Opt(option, Wish("sized", {1})));
    const std::string sizes = Sizes(option, 4096, 4096, 1 << 20);
    ASSERT_EQ(answer.substr(0, sizes.size()), sizes);
    EXPECT_EQ(answer.substr(sizes.size(), 16), U64(0x3e889045565a9) + U32(option) + U32(kBlockSizeReqd));
    EXPECT_GT(answer.size(), sizes.size() + 20) << "no text";
  }
  EXPECT_TRUE(admitted_.empty());
  EXPECT_EQ(Send(Opt(kGoOption, Wish("sized", {kBlockSizeInfo}))),
            Described(kGoOption) + Sizes(kGoOption, 4096, 4096, 1 << 20) + Reply(kGoOption, kAck));
}

// "The server MUST NOT send this error if size constraints were requested with NBD_INFO_BLOCK_SIZE with the
// NBD_OPT_INFO or NBD_OPT_GO request."
TEST_F(HandshakeBlockSizeTest, WhoAskedBeforeKnows) {
  AddSized(kStrict);
  Connect();
  Send(Opt(kInfoOption, Wish("disk", {kBlockSizeInfo})));
  EXPECT_EQ(Send(Opt(kGoOption, Wish("sized"))).substr(8, 4), U32(kGoOption));
  EXPECT_FALSE(handshake_->finished()) << "it knows of another export";
  Send(Opt(kInfoOption, Wish("sized", {kBlockSizeInfo})));
  Send(Opt(kGoOption, Wish("sized")));
  EXPECT_TRUE(handshake_->negotiated());
}

// "MAY refuse to go into transmission phase with a client that uses NBD_OPT_EXPORT_NAME (via a hard
// disconnect)".
TEST_F(HandshakeBlockSizeTest, ExportNameCannotAsk) {
  AddSized(kStrict);
  Connect();
  EXPECT_EQ(Send(Opt(kExportNameOption, "sized")), "");
  ExpectClosed(absl::StatusCode::kPermissionDenied);
}

// "The server SHOULD NOT send this error if it is using default size constraints".
TEST_F(HandshakeBlockSizeTest, NobodyHasToAskForTheDefault) {
  AddSized({.preferred = 65536, .must_be_asked_for = true});
  Connect();
  EXPECT_EQ(Send(Opt(kGoOption, Wish("sized"))), Described(kGoOption) + Reply(kGoOption, kAck));
}

}  // namespace
}  // namespace berth::nbd
