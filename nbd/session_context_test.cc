// Metadata contexts that a device offers, from the handshake to the bytes of a block status.
#include <cerrno>
#include <utility>

#include "nbd/handshake_fixture.h"
#include "nbd/session.h"
#include "nbd/session_fixture.h"
#include "tests/fakes/status_device.h"

namespace berth::nbd {
namespace {

constexpr uint64_t kStripe = StatusDevice::kStripe;
constexpr char kStripes[] = "x-test:stripes", kDepth[] = "x-test:depth", kWide[] = "x-test:wide:one";

class HandshakeOffersTest : public HandshakeTest {
 protected:
  HandshakeOffersTest() {
    auto device = std::make_shared<StatusDevice>(std::make_shared<NullDevice>(kSize));
    device->Offer(kStripes, false, 1);
    device->Offer(kDepth, false, 0);
    device->Offer(kWide, true, uint64_t{1} << 40);
    auto offering = std::make_shared<Export>();
    offering->name = "offering";
    offering->device = device;
    exports_.Add(std::move(offering));
  }

  void ConnectWith(uint32_t option) {
    Connect();
    Send(Opt(option));
  }
  std::string List(const std::vector<std::string>& queries) {
    return Send(Opt(kListMetaOption, Queries("offering", queries)));
  }
  static std::string Listed(const std::vector<std::string>& names) {
    std::string replies;
    for (const std::string& name : names) replies += Reply(kListMetaOption, kMeta, U32(0) + name);
    return replies + Reply(kListMetaOption, kAck);
  }
};

// NBD_OPT_LIST_META_CONTEXT, all forms of a query.
TEST_F(HandshakeOffersTest, QueriesOfAList) {
  ConnectWith(kExtendedOption);
  EXPECT_EQ(List({}), Listed({"base:allocation", kStripes, kDepth, kWide}));
  EXPECT_EQ(List({"x-test:"}), Listed({kStripes, kDepth, kWide}));
  EXPECT_EQ(List({"x-test:wide:"}), Listed({kWide}));
  EXPECT_EQ(List({kDepth}), Listed({kDepth}));
  EXPECT_EQ(List({"x-test:", "base:", kDepth}), Listed({"base:allocation", kStripes, kDepth, kWide}));
  EXPECT_EQ(List({"x-test:de", "x-tes:", "x-test:depth:", "qemu:"}), Listed({}));
}

// "The server MUST either omit that context from its successful reply, or else fail the request with
// NBD_REP_ERR_EXT_HEADER_REQD": omitted where a wildcard met it, and an error where it was asked for by name.
TEST_F(HandshakeOffersTest, WideContextsNeedExtendedHeaders) {
  ConnectWith(kStructuredOption);
  EXPECT_EQ(List({}), Listed({"base:allocation", kStripes, kDepth}));
  EXPECT_EQ(List({"x-test:"}), Listed({kStripes, kDepth}));
  // "a server MUST NOT use this failure mode when the response is limited to the base: namespace".
  EXPECT_EQ(List({"base:"}), Listed({"base:allocation"}));
  for (const uint32_t option : {kListMetaOption, kSetMetaOption}) {
    const auto [type, text] = Error(option, Queries("offering", {"base:allocation", kWide}));
    EXPECT_EQ(type, kExtHeaderReqd);
    EXPECT_NE(text.find(kWide), std::string::npos) << text;
  }
  Send(Opt(kGoOption, Wish("offering")));
  EXPECT_TRUE(handshake_->TakeNegotiated().contexts.empty());
}

// Each with an ID of its own; a wildcard selects nothing.
TEST_F(HandshakeOffersTest, SetSelectsByName) {
  ConnectWith(kExtendedOption);
  EXPECT_EQ(Send(Opt(kSetMetaOption, Queries("offering", {kWide, "x-test:", kStripes, kWide}))),
            Reply(kSetMetaOption, kMeta, U32(2) + kStripes) + Reply(kSetMetaOption, kMeta, U32(4) + kWide) +
                Reply(kSetMetaOption, kAck));
  Send(Opt(kGoOption, Wish("offering")));
  const std::vector<MetaContext> contexts = handshake_->TakeNegotiated().contexts;
  ASSERT_EQ(contexts.size(), 2u);
  EXPECT_EQ(contexts[0].id, 2u);
  EXPECT_EQ(contexts[1].source->name(), kWide);
}

// The export may go, and another take its name, before the client chooses it.
TEST_F(HandshakeOffersTest, SelectedContextsAreThoseOfTheExportThatIsThere) {
  ConnectWith(kExtendedOption);
  Send(Opt(kSetMetaOption, Queries("offering", {"base:allocation", kStripes})));
  const std::shared_ptr<const Export> before = exports_.Find("offering");
  EXPECT_EQ(before->device->contexts()[0].use_count(), 2) << "the handshake holds on to it";
  auto device = std::make_shared<StatusDevice>(std::make_shared<NullDevice>(kSize));
  device->Offer(kDepth, false, 1);
  device->Offer(kStripes, false, 1);
  auto after = std::make_shared<Export>();
  after->name = "offering";
  after->device = device;
  exports_.Remove("offering");
  ASSERT_TRUE(exports_.Add(std::move(after)));
  Send(Opt(kGoOption, Wish("offering")));
  const std::vector<MetaContext> contexts = handshake_->TakeNegotiated().contexts;
  ASSERT_EQ(contexts.size(), 2u);
  EXPECT_EQ(contexts[1].id, 2u) << "as the client was told";
  EXPECT_EQ(contexts[1].source, device->contexts()[1]);
}

TEST_F(HandshakeOffersTest, ContextsThatAreGoneAreNotAnswered) {
  ConnectWith(kExtendedOption);
  Send(Opt(kSetMetaOption, Queries("offering", {"base:allocation", kStripes})));
  exports_.Remove("offering");
  Add("offering");
  Send(Opt(kGoOption, Wish("offering")));
  EXPECT_TRUE(handshake_->TakeNegotiated().contexts.empty());
}

// NBD_REP_ERR_TOO_BIG: "if a request seeks to select too many contexts".
TEST_F(HandshakeOffersTest, NotTooManyAreSelected) {
  auto device = std::make_shared<StatusDevice>(std::make_shared<NullDevice>(kSize));
  std::vector<std::string> names;
  for (int i = 0; i < 40; ++i) {
    names.push_back("x-test:" + std::to_string(i));
    device->Offer(names.back(), false, 1);
  }
  auto many = std::make_shared<Export>();
  many->name = "many";
  many->device = device;
  ASSERT_TRUE(exports_.Add(std::move(many)));
  ConnectWith(kExtendedOption);
  EXPECT_EQ(ErrorType(kSetMetaOption, Queries("many", names)), kTooBig);
  names.resize(kMaxSelectedContexts);
  EXPECT_GT(Send(Opt(kSetMetaOption, Queries("many", names))).size(), 32 * 24u);
  // "In this case, the server SHOULD NOT fail with NBD_REP_ERR_TOO_BIG."
  EXPECT_GT(Send(Opt(kListMetaOption, Queries("many", {}))).size(), 41 * 24u);
  Send(Opt(kGoOption, Wish("many")));
  EXPECT_EQ(handshake_->TakeNegotiated().contexts.size(), kMaxSelectedContexts);
}

class SessionContextTest : public SessionTest {
 protected:
  void SetUp() override {
    SessionTest::SetUp();
    status_ = std::make_shared<StatusDevice>(memory_);
    status_->Offer(kStripes, false, 1);
    status_->Offer(kWide, true, uint64_t{1} << 40);
    Use(status_, ReplyStyle::kExtended);
  }

  // Every context of `device`, and base:allocation between them.
  void Use(std::shared_ptr<BlockDevice> device, ReplyStyle style) {
    UseStructuredReplies(style);
    negotiated_.contexts = {{2, kStripes, device->contexts()[0]}, {1, kBaseAllocation}};
    if (style == ReplyStyle::kExtended) {
      negotiated_.contexts.push_back({3, kWide, device->contexts()[1]});
    }
    export_->device = std::move(device);
  }

  struct Status {
    uint32_t id = 0;
    std::vector<StatusExtent> extents;
  };
  std::vector<Status> Ask(uint64_t offset, uint64_t length, uint16_t flags = 0) {
    EXPECT_TRUE(client_->Send({flags, Command::kBlockStatus, 1, offset, length}));
    std::vector<Status> answer;
    while (true) {
      const RawClient::Chunk chunk = client_->ReceiveChunk();
      BlockStatusPayload payload;
      EXPECT_TRUE(DecodeBlockStatus(negotiated_.reply_style, chunk.payload, &payload));
      answer.push_back({payload.context_id, {}});
      const size_t size = ExtentDescriptorSize(negotiated_.reply_style);
      for (; !payload.descriptors.empty(); payload.descriptors.remove_prefix(size)) {
        ExtentDescriptor extent;
        DecodeExtentDescriptor(negotiated_.reply_style, payload.descriptors, &extent);
        answer.back().extents.push_back({extent.length, extent.status});
      }
      if (chunk.done()) return answer;
    }
  }

  std::shared_ptr<StatusDevice> status_;
};

using Extents = std::vector<StatusExtent>;

TEST_F(SessionContextTest, EachContextHasItsChunk) {
  Start();
  const std::vector<Status> answer = Ask(kStripe, 2 * kStripe + 512);
  ASSERT_EQ(answer.size(), 3u);
  EXPECT_EQ(answer[0].id, 2u);
  EXPECT_EQ(answer[0].extents, (Extents{{kStripe, 1}, {kStripe, 2}, {512, 3}}));
  EXPECT_EQ(answer[1].id, 1u);
  EXPECT_EQ(answer[1].extents, (Extents{{2 * kStripe + 512, kStateHole | kStateZero}}));
  EXPECT_EQ(answer[2].id, 3u);
  EXPECT_EQ(answer[2].extents,
            (Extents{{kStripe, uint64_t{1} << 40}, {kStripe, uint64_t{2} << 40}, {512, uint64_t{3} << 40}}));
  for (const Status& one : Ask(0, 4 * kStripe, kCommandFlagReqOne)) EXPECT_EQ(one.extents.size(), 1u);
}

TEST_F(SessionContextTest, StatusIn32Bits) {
  Use(status_, ReplyStyle::kStructured);
  Start();
  const std::vector<Status> answer = Ask(512, kStripe);
  ASSERT_EQ(answer.size(), 2u);
  EXPECT_EQ(answer[0].extents, (Extents{{kStripe - 512, 0}, {512, 1}}));
}

TEST_F(SessionContextTest, AnAnswerIsBoundedByItsExtents) {
  Start();
  const std::vector<Status> answer = Ask(0, kSize);
  EXPECT_EQ(answer[0].extents.size(), std::min<uint64_t>(kMaxExtents, kSize / kStripe));
}

// An error after the first context's chunk ends the reply, and the session goes on.
TEST_F(SessionContextTest, AContextThatFails) {
  std::swap(negotiated_.contexts[0], negotiated_.contexts[1]);
  Start();
  status_->Fail(ENOMEM);
  ASSERT_TRUE(client_->Send({0, Command::kBlockStatus, 1, 0, 4096}));
  EXPECT_EQ(client_->ReceiveChunk().header.type, ChunkType::kBlockStatusExt);
  const RawClient::Chunk chunk = client_->ReceiveChunk();
  EXPECT_TRUE(chunk.done());
  EXPECT_EQ(chunk.error(), berth::nbd::Error::kNoMem);
  status_->Fail(0);
  EXPECT_EQ(Ask(0, 4096).size(), 3u);
}

}  // namespace
}  // namespace berth::nbd
