// Rules of the specification that hold whatever else a handshake does. docs/protocol.md says which.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "image/block/block_device.h"
#include "nbd/handshake_fixture.h"
#include "nbd/protocol_string.h"

namespace berth::nbd {
namespace {

// A device of which only the traits matter.
class Described final : public BlockDevice {
 public:
  explicit Described(const BlockTraits& traits) : traits_(traits) {}
  const BlockTraits& traits() const override { return traits_; }
  uint64_t size() const override { return kSize; }
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor&) override {
    return absl::UnimplementedError("it has no data");
  }
  absl::Status Resize(uint64_t) override { return absl::UnimplementedError("it has no data"); }

 private:
  const BlockTraits traits_;
};

uint32_t Number(absl::string_view bytes) {
  uint32_t number = 0;
  for (char byte : bytes) number = number << 8 | static_cast<uint8_t>(byte);
  return number;
}

struct OneReply {
  uint32_t option = 0;
  uint32_t type = 0;
  std::string data;
};

// Splits what came back into replies, and checks that nothing is left over.
std::vector<OneReply> Split(const std::string& bytes) {
  std::vector<OneReply> replies;
  size_t at = 0;
  while (bytes.size() - at >= 20) {
    EXPECT_EQ(bytes.substr(at, 8), U64(0x3e889045565a9));
    const uint32_t length = Number(bytes.substr(at + 16, 4));
    EXPECT_LE(length, bytes.size() - at - 20);
    replies.push_back({.option = Number(bytes.substr(at + 8, 4)),
                       .type = Number(bytes.substr(at + 12, 4)),
                       .data = bytes.substr(at + 20, length)});
    at += 20 + length;
  }
  EXPECT_EQ(at, bytes.size());
  return replies;
}

bool IsError(const OneReply& reply) { return (reply.type & 0x80000000) != 0; }

// "Conventions": strings are UTF-8 without NUL and have at most 4,096 bytes; error texts too.
TEST_F(HandshakeTest, TextsForPeopleAreStringsOfTheProtocol) {
  Connect();
  std::vector<std::pair<uint32_t, std::string>> refused;
  for (const std::string& name :
       {std::string(4096, '\x01'), std::string("\u20ac\n\"'\\"), std::string(4096, '\''),
        absl::StrCat(std::string(79, 'x'), "\u20ac\u20ac"), std::string("\xff"), std::string(1, '\0')}) {
    refused.emplace_back(kGoOption, Wish(name));
    refused.emplace_back(kListMetaOption, Queries(name, {}));
    refused.emplace_back(kListMetaOption, Queries("disk", {name}));
  }
  refused.emplace_back(77, "");
  refused.emplace_back(kListOption, "x");
  refused.emplace_back(kGoOption, Wish("disk"));
  std::string words = "x";
  for (int i = 0; i < 5000; ++i) words += "\u20ac";
  admission_ = absl::FailedPreconditionError(words);
  for (const auto& [option, data] : refused) {
    const auto [type, text] = Error(option, data);
    EXPECT_NE(type & 0x80000000, 0u);
    EXPECT_FALSE(text.empty());
    EXPECT_LE(text.size(), 4096u);
    EXPECT_TRUE(IsProtocolString(text)) << text;
  }
}

// "Conventions", for NBD_REP_SERVER and NBD_INFO_DESCRIPTION.
TEST_F(HandshakeTest, LongDescriptionsAreCut) {
  std::string description = "x";
  for (int i = 0; i < 5000; ++i) description += "\u20ac";
  exports_.Remove("disk");
  Add("described", description);
  Connect();
  const std::string cut = description.substr(0, 4096);  // One byte, and 1,365 characters of three.
  ASSERT_TRUE(IsProtocolString(cut));
  EXPECT_EQ(Send(Opt(kListOption)),
            Reply(kListOption, kServer, Counted("described") + cut) + Reply(kListOption, kAck));
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("described", {2}))),
            Reply(kInfoOption, kInfo, U16(0) + SizeAndFlags()) + Reply(kInfoOption, kInfo, U16(2) + cut) +
                Reply(kInfoOption, kAck));
}

// NBD_OPT_INFO and NBD_OPT_GO: a client MUST NOT ask for one thing twice; one that does gets one answer, as
// "a particular information type SHOULD only appear once".
TEST_F(HandshakeTest, InformationIsGivenOnce) {
  Add("described", "what it is");
  Connect();
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("described", {3, 2, 1, 0, 3, 2, 1, 0, 3}))),
            Send(Opt(kInfoOption, Wish("described", {0, 1, 2, 3}))));
}

// NBD_OPT_INFO and NBD_OPT_GO: with the same parameters and nothing between them, "the server MUST reply with
// the same set of information".
TEST_F(HandshakeTest, GoRepeatsWhatInfoSaid) {
  Add("described", "what it is");
  for (bool structured : {false, true}) {
    for (const std::vector<uint16_t>& infos :
         {std::vector<uint16_t>{}, {0}, {1, 2}, {3}, {0, 1, 2, 3, 4, 0x7fff}}) {
      Connect();
      if (structured) Send(Opt(kStructuredOption));
      std::vector<OneReply> info = Split(Send(Opt(kInfoOption, Wish("described", infos))));
      const std::vector<OneReply> go = Split(Send(Opt(kGoOption, Wish("described", infos))));
      ASSERT_EQ(info.size(), go.size());
      for (size_t i = 0; i < info.size(); ++i) {
        EXPECT_EQ(info[i].option, kInfoOption);
        EXPECT_EQ(go[i].option, kGoOption);
        EXPECT_EQ(info[i].type, go[i].type);
        EXPECT_EQ(info[i].data, go[i].data);
      }
      EXPECT_TRUE(handshake_->negotiated());
    }
  }
}

// "Size constraints": what NBD_INFO_BLOCK_SIZE says, whatever the device is like.
TEST_F(HandshakeTest, BlockSizesKeepToTheirBounds) {
  for (uint32_t alignment : {1u, 256u, 512u, 4096u, 65'536u, 1u << 20, 1u << 25, 1u << 27, 1u << 31}) {
    BlockTraits traits;
    traits.preferred_alignment = alignment;
    auto added = std::make_shared<Export>();
    added->name = absl::StrCat(alignment);
    added->device = std::make_shared<Described>(traits);
    ASSERT_TRUE(exports_.Add(added));
    Connect();
    const std::vector<OneReply> replies = Split(Send(Opt(kInfoOption, Wish(added->name, {3}))));
    ASSERT_EQ(replies.size(), 3u);
    ASSERT_EQ(replies[1].data.size(), 14u);
    EXPECT_EQ(replies[1].data.substr(0, 2), U16(3));
    const uint32_t minimum = Number(replies[1].data.substr(2, 4));
    const uint32_t preferred = Number(replies[1].data.substr(6, 4));
    const uint32_t maximum = Number(replies[1].data.substr(10, 4));
    EXPECT_EQ(minimum & (minimum - 1), 0u);
    EXPECT_GE(minimum, 1u);
    EXPECT_LE(minimum, 65'536u);
    EXPECT_EQ(preferred & (preferred - 1), 0u);
    EXPECT_GE(preferred, std::max(minimum, 512u));
    EXPECT_GE(maximum, preferred);
    EXPECT_GE(maximum, 1u << 25);
  }
}

// "Size constraints": with the defaults nobody has to ask for them, and with NBD_INFO_BLOCK_SIZE nobody is
// told NBD_REP_ERR_BLOCK_SIZE_REQD.
TEST_F(HandshakeTest, DefaultBlockSizesAreNotRequired) {
  for (const std::string& request :
       {Opt(kGoOption, Wish("disk")), Opt(kGoOption, Wish("disk", {3})), Opt(kExportNameOption, "disk")}) {
    Connect();
    Send(request);
    EXPECT_TRUE(handshake_->negotiated());
  }
}

// "NOTLS mode": "The server MUST NOT respond to any option request with NBD_REP_ERR_TLS_REQD", and replies
// name the option that they answer.
TEST_F(HandshakeTest, NobodyIsSentToTlsThatIsNotOffered) {
  for (uint32_t option = 0; option < 20; ++option) {
    if (option == kExportNameOption || option == kAbortOption) continue;
    for (const std::string& data : {std::string(), std::string("x"), Wish("none"), Wish("disk", {3}),
                                    Queries("none", {}), Queries("disk", {"base:allocation"})}) {
      Connect();
      const std::vector<OneReply> replies = Split(Send(Opt(option, data)));
      ASSERT_FALSE(replies.empty());
      for (const OneReply& reply : replies) {
        EXPECT_EQ(reply.option, option);
        EXPECT_NE(reply.type, 0x80000005u);
      }
      // The last is the end: an ACK or an error, and there is none before it.
      for (size_t i = 0; i < replies.size(); ++i) {
        EXPECT_EQ(replies[i].type == kAck || IsError(replies[i]), i + 1 == replies.size()) << option;
      }
    }
  }
}

// "Termination of the session during option haggling": errors, "until the client gets the hint"; they change
// nothing of what was negotiated.
TEST_F(HandshakeTest, RefusedOptionsChangeNothing) {
  Connect();
  Send(Opt(kStructuredOption));
  Send(Opt(kSetMetaOption, Queries("disk", {"base:allocation"})));
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(ErrorType(kGoOption, Wish("none")), kUnknown);
    EXPECT_EQ(ErrorType(kInfoOption, "x"), kInvalid);
    EXPECT_EQ(ErrorType(kListOption, "x"), kInvalid);
    EXPECT_EQ(ErrorType(kListMetaOption, "x"), kInvalid);
    EXPECT_EQ(ErrorType(99, "x"), kUnsup);
  }
  EXPECT_EQ(Send(Opt(kGoOption, Wish("disk"))),
            Reply(kGoOption, kInfo, U16(0) + SizeAndFlags(kDfFlag)) + Reply(kGoOption, kAck));
  const Negotiated negotiated = handshake_->TakeNegotiated();
  EXPECT_EQ(negotiated.reply_style, ReplyStyle::kStructured);
  EXPECT_EQ(negotiated.contexts.size(), 1u);
}

// "Metadata querying": contexts are of "the same export name", by NBD_OPT_EXPORT_NAME as well.
TEST_F(HandshakeTest, ContextsAreKeptOnTheWayByExportName) {
  Add("other");
  for (const auto& [chosen, contexts] : {std::make_pair("disk", 1u), std::make_pair("other", 0u)}) {
    Connect();
    Send(Opt(kStructuredOption));
    Send(Opt(kSetMetaOption, Queries("disk", {"base:allocation"})));
    Send(Opt(kExportNameOption, chosen));
    ASSERT_TRUE(handshake_->negotiated());
    EXPECT_EQ(handshake_->TakeNegotiated().contexts.size(), contexts) << chosen;
  }
}

// NBD_OPT_EXPORT_NAME: the empty name is the default export, and its contexts are kept too.
TEST_F(HandshakeTest, ContextsOfTheDefaultExport) {
  options_.sole_export_is_default = true;
  Connect();
  Send(Opt(kStructuredOption));
  Send(Opt(kSetMetaOption, Queries("", {"base:allocation"})));
  Send(Opt(kGoOption, Wish("")));
  EXPECT_EQ(handshake_->TakeNegotiated().contexts.size(), 1u);
}

// NBD_OPT_SET_META_CONTEXT: only the last one counts, and it may name another export.
TEST_F(HandshakeTest, TheLastSelectionCounts) {
  Add("other");
  Connect();
  Send(Opt(kStructuredOption));
  Send(Opt(kSetMetaOption, Queries("disk", {"base:allocation"})));
  Send(Opt(kSetMetaOption, Queries("other", {"base:allocation"})));
  Send(Opt(kGoOption, Wish("disk")));
  EXPECT_TRUE(handshake_->TakeNegotiated().contexts.empty());
  Connect();
  Send(Opt(kStructuredOption));
  Send(Opt(kSetMetaOption, Queries("other", {"base:allocation"})));
  Send(Opt(kSetMetaOption, Queries("disk", {"base:allocation"})));
  Send(Opt(kGoOption, Wish("disk")));
  EXPECT_EQ(handshake_->TakeNegotiated().contexts.size(), 1u);
}

// "Server-side requirements": without fixed newstyle there is no TLS. Where it is offered such a client is
// served in the clear; where it is required, not at all.
TEST_F(HandshakeTest, WithoutFixedNewstyleThereIsNoTls) {
  for (const TlsMode mode : {TlsMode::kAllow, TlsMode::kRequire}) {
    options_.tls = mode;
    Connect(0);
    EXPECT_EQ(Send(Opt(kStartTlsOption)), "");
    ExpectClosed(absl::StatusCode::kInvalidArgument);
    Connect(0);
    const std::string reply = Send(Opt(kExportNameOption, "disk"));
    EXPECT_EQ(handshake_->negotiated(), mode == TlsMode::kAllow);
    EXPECT_EQ(reply, mode == TlsMode::kAllow ? SizeAndFlags() + std::string(124, '\0') : "");
  }
}

// NBD_OPT_STARTTLS: contexts of before are not those of after, though the replies that they need are agreed
// on anew.
TEST_F(HandshakeTest, ContextsAreNotCarriedIntoTls) {
  options_.tls = TlsMode::kAllow;
  for (uint32_t style : {kStructuredOption, kExtendedOption}) {
    Connect();
    Send(Opt(style));
    Send(Opt(kSetMetaOption, Queries("disk", {"base:allocation"})));
    EXPECT_EQ(Send(Opt(kStartTlsOption)), Reply(kStartTlsOption, kAck));
    ASSERT_TRUE(handshake_->wants_tls());
    handshake_->TlsStarted();
    Send(Opt(style));
    // No NBD_FLAG_BLOCK_STATUS_PAYLOAD either.
    EXPECT_EQ(Send(Opt(kGoOption, Wish("disk"))),
              Reply(kGoOption, kInfo, U16(0) + SizeAndFlags(kDfFlag)) + Reply(kGoOption, kAck));
    EXPECT_TRUE(handshake_->TakeNegotiated().contexts.empty());
  }
}

// "Metadata querying": a name is a namespace, a colon and a leaf; "Structured reply types": each context has
// an ID of its own.
TEST_F(HandshakeTest, ContextNamesAndIdentifiers) {
  Connect();
  Send(Opt(kStructuredOption));
  for (uint32_t option : {kListMetaOption, kSetMetaOption}) {
    const std::vector<OneReply> replies =
        Split(Send(Opt(option, Queries("disk", {"base:allocation", "base:", "base:allocation"}))));
    std::vector<std::string> identifiers;
    for (const OneReply& reply : replies) {
      if (reply.type != kMeta) continue;
      ASSERT_GT(reply.data.size(), 4u);
      const std::string name = reply.data.substr(4);
      EXPECT_TRUE(absl::StartsWith(name, "base:")) << name;
      EXPECT_TRUE(IsProtocolString(name));
      EXPECT_LE(name.size(), 4096u);
      identifiers.push_back(reply.data.substr(0, 4));
      if (option == kListMetaOption) {
        EXPECT_EQ(identifiers.back(), U32(0));
      }
    }
    EXPECT_FALSE(identifiers.empty());
    if (option == kListMetaOption) continue;
    std::sort(identifiers.begin(), identifiers.end());
    EXPECT_EQ(std::adjacent_find(identifiers.begin(), identifiers.end()), identifiers.end());
  }
}

}  // namespace
}  // namespace berth::nbd
