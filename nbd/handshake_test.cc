// The bytes are written out by hand, from proto.md's sections, so that nothing is checked against itself.
#include "nbd/handshake.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "image/null/null_device.h"
#include "nbd/export_map.h"

namespace berth::nbd {
namespace {

std::string U16(uint16_t v) { return {static_cast<char>(v >> 8), static_cast<char>(v)}; }
std::string U32(uint32_t v) { return U16(static_cast<uint16_t>(v >> 16)) + U16(static_cast<uint16_t>(v)); }
std::string U64(uint64_t v) { return U32(static_cast<uint32_t>(v >> 32)) + U32(static_cast<uint32_t>(v)); }
std::string Counted(absl::string_view text) {
  return U32(static_cast<uint32_t>(text.size())) + std::string(text);
}

// "Option types".
constexpr uint32_t kExportNameOption = 1, kAbortOption = 2, kListOption = 3, kPeekOption = 4,
                   kStartTlsOption = 5, kInfoOption = 6, kGoOption = 7, kStructuredOption = 8,
                   kListMetaOption = 9, kSetMetaOption = 10, kExtendedOption = 11;
// "Option reply types".
constexpr uint32_t kAck = 1, kServer = 2, kInfo = 3, kMeta = 4, kUnsup = 0x80000001, kPolicy = 0x80000002,
                   kInvalid = 0x80000003, kUnknown = 0x80000006, kShutdown = 0x80000007, kTooBig = 0x80000009;
constexpr uint64_t kSize = 1 << 20;
// Has flags, flush, FUA, write zeroes, cache; and what NullDevice adds: trim, fast zero.
constexpr uint16_t kFlags = 0x0001 | 0x0004 | 0x0008 | 0x0040 | 0x0400;
constexpr uint16_t kDfFlag = 0x0080;

std::string Opt(uint32_t option, absl::string_view data = "") {
  return "IHAVEOPT" + U32(option) + Counted(data);
}
std::string Reply(uint32_t option, uint32_t type, absl::string_view data = "") {
  return U64(0x3e889045565a9) + U32(option) + U32(type) + Counted(data);
}
// Of NBD_OPT_INFO and NBD_OPT_GO.
std::string Wish(absl::string_view name, std::vector<uint16_t> infos = {}) {
  std::string data = Counted(name) + U16(static_cast<uint16_t>(infos.size()));
  for (uint16_t info : infos) data += U16(info);
  return data;
}
// Of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
std::string Queries(absl::string_view name, std::vector<std::string> queries) {
  std::string data = Counted(name) + U32(static_cast<uint32_t>(queries.size()));
  for (const std::string& query : queries) data += Counted(query);
  return data;
}

class HandshakeTest : public testing::Test {
 protected:
  HandshakeTest() { Add("disk"); }

  void Add(const std::string& name, const std::string& description = "", bool read_only = false) {
    auto added = std::make_shared<Export>();
    added->name = name;
    added->description = description;
    added->device = std::make_shared<NullDevice>(kSize);
    added->read_only = read_only;
    ASSERT_TRUE(exports_.Add(std::move(added)));
  }

  // A connection after the greeting, and the client's flags: fixed newstyle and no zeroes.
  void Connect(uint32_t client_flags = 3) {
    handshake_ = std::make_unique<Handshake>(exports_, options_, [this](const Export& served) {
      admitted_.push_back(served.name);
      return admission_;
    });
    ASSERT_EQ(Output(), "NBDMAGICIHAVEOPT" + U16(3));
    Send(U32(client_flags));
  }

  std::string Output() {
    std::string all;
    while (!handshake_->output().empty()) {
      const absl::Span<const uint8_t> output = handshake_->output().subspan(0, 1000);
      all.append(output.begin(), output.end());
      largest_output_ = std::max(largest_output_, handshake_->output().size());
      handshake_->Sent(output.size());
    }
    return all;
  }

  // Everything that comes back, whatever pieces the bytes arrive in.
  std::string Send(const std::string& bytes) {
    std::string received;
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
    for (size_t at = 0; at < bytes.size() && !handshake_->finished();) {
      const size_t count = std::min(piece_, bytes.size() - at);
      const size_t consumed = handshake_->Consume({data + at, count});
      at += consumed;
      received += Output();
    }
    return received;
  }

  // The type of the last reply, and its text.
  std::pair<uint32_t, std::string> Error(uint32_t option, const std::string& data) {
    const std::string reply = Send(Opt(option, data));
    EXPECT_GE(reply.size(), 20u) << handshake_->close_reason();
    if (reply.size() < 20) return {};
    EXPECT_EQ(reply.substr(0, 12), U64(0x3e889045565a9) + U32(option));
    uint32_t type = 0;
    for (int i = 12; i < 16; ++i) type = type << 8 | static_cast<uint8_t>(reply[i]);
    EXPECT_EQ(reply.substr(16, 4), U32(static_cast<uint32_t>(reply.size() - 20)));
    return {type, reply.substr(20)};
  }
  uint32_t ErrorType(uint32_t option, const std::string& data) { return Error(option, data).first; }

  void ExpectClosed(absl::StatusCode code) {
    EXPECT_TRUE(handshake_->finished());
    EXPECT_FALSE(handshake_->negotiated());
    EXPECT_EQ(handshake_->close_reason().code(), code) << handshake_->close_reason();
    EXPECT_EQ(handshake_->wanted(), 0u);
  }

  // The client is still being listened to.
  void ExpectGoesOn() { EXPECT_EQ(Send(Opt(kStructuredOption)), Reply(kStructuredOption, kAck)); }

  // What NBD_INFO_EXPORT says of an export here, without its type.
  static std::string SizeAndFlags(uint16_t more = 0, uint64_t size = kSize) {
    const BlockTraits traits = NullDevice(1).traits();
    uint16_t flags = kFlags | more;
    if (traits.can_discard) flags |= 0x0020;
    if (traits.fast_zero) flags |= 0x0800;
    return U64(size) + U16(flags);
  }

  ExportMap exports_;
  HandshakeOptions options_;
  absl::Status admission_;
  std::vector<std::string> admitted_;
  std::unique_ptr<Handshake> handshake_;
  size_t piece_ = 1 << 20;
  size_t largest_output_ = 0;
};

// "Newstyle negotiation", "Handshake flags": fixed newstyle MUST be set by those who support it, and no
// other flags than these two.
TEST_F(HandshakeTest, GreetsFirst) {
  Handshake fresh(exports_, options_, [](const Export&) { return absl::OkStatus(); });
  const absl::Span<const uint8_t> output = fresh.output();
  EXPECT_EQ(
      std::string(output.begin(), output.end()),
      absl::string_view("\x4e\x42\x44\x4d\x41\x47\x49\x43\x49\x48\x41\x56\x45\x4f\x50\x54\x00\x03", 18));
  EXPECT_EQ(fresh.wanted(), 0u);  // Not before it has been sent.
  fresh.Sent(17);
  EXPECT_EQ(fresh.wanted(), 0u);
  fresh.Sent(1);
  EXPECT_EQ(fresh.wanted(), 4u);
}

// "Client flags": "the server MUST drop the TCP connection if the client sets an unknown flag".
TEST_F(HandshakeTest, UnknownClientFlagsCloseTheConnection) {
  for (uint32_t flags : {4u, 0x80000000u, 7u, 0xffffffffu}) {
    Connect(flags);
    ExpectClosed(absl::StatusCode::kInvalidArgument);
  }
}

// "Newstyle negotiation": the option's magic number.
TEST_F(HandshakeTest, WrongMagicClosesTheConnection) {
  Connect();
  EXPECT_EQ(Send("IHAVEOPS" + U32(kListOption) + U32(0)), "");
  ExpectClosed(absl::StatusCode::kInvalidArgument);
}

// NBD_OPT_EXPORT_NAME: size, flags, and 124 zeroes unless NBD_FLAG_C_NO_ZEROES.
TEST_F(HandshakeTest, ExportName) {
  Connect(3);
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), SizeAndFlags());
  ASSERT_TRUE(handshake_->negotiated());
  const Negotiated negotiated = handshake_->TakeNegotiated();
  EXPECT_EQ(negotiated.served->name, "disk");
  EXPECT_EQ(negotiated.reply_style, ReplyStyle::kSimple);
  EXPECT_TRUE(negotiated.contexts.empty());

  Connect(1);
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), SizeAndFlags() + std::string(124, '\0'));
  EXPECT_TRUE(handshake_->negotiated());
}

// "If the server is unwilling to allow the export, it MUST terminate the session."
TEST_F(HandshakeTest, ExportNameThatCannotBeHadClosesTheConnection) {
  Connect();
  EXPECT_EQ(Send(Opt(kExportNameOption, "other")), "");
  ExpectClosed(absl::StatusCode::kNotFound);

  Connect();
  EXPECT_EQ(Send(Opt(kExportNameOption, absl::string_view("di\0k", 4))), "");
  ExpectClosed(absl::StatusCode::kInvalidArgument);

  Connect();
  EXPECT_EQ(Send("IHAVEOPT" + U32(kExportNameOption) + U32(4097)), "");
  ExpectClosed(absl::StatusCode::kInvalidArgument);

  admission_ = absl::FailedPreconditionError("taken");
  Connect();
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), "");
  ExpectClosed(absl::StatusCode::kPermissionDenied);
}

// "Newstyle negotiation": in the non-fixed kind NBD_OPT_EXPORT_NAME is the only valid option, and a reply to
// another would not be understood.
TEST_F(HandshakeTest, WithoutFixedNewstyleOnlyExportName) {
  for (uint32_t option : {kAbortOption, kListOption, kGoOption, kStructuredOption, 99u}) {
    Connect(0);
    EXPECT_EQ(Send(Opt(option)), "");
    ExpectClosed(absl::StatusCode::kInvalidArgument);
  }
  Connect(0);
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), SizeAndFlags() + std::string(124, '\0'));
  EXPECT_TRUE(handshake_->negotiated());
  Connect(2);  // NBD_FLAG_C_NO_ZEROES alone.
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), SizeAndFlags());
}

// NBD_OPT_ABORT: "The server MUST reply with NBD_REP_ACK", and "SHOULD ignore any data".
TEST_F(HandshakeTest, Abort) {
  Connect();
  EXPECT_EQ(Send(Opt(kAbortOption)), Reply(kAbortOption, kAck));
  ExpectClosed(absl::StatusCode::kCancelled);
  Connect();
  EXPECT_EQ(Send(Opt(kAbortOption, "so long")), Reply(kAbortOption, kAck));
  ExpectClosed(absl::StatusCode::kCancelled);
}

// NBD_OPT_LIST: one NBD_REP_SERVER each and NBD_REP_ACK; NBD_REP_SERVER: the name's length, the name, and
// what else there is to show a human being.
TEST_F(HandshakeTest, List) {
  Add("", "the default");
  Add("a/b", "Füße");
  Connect();
  EXPECT_EQ(Send(Opt(kListOption)), Reply(kListOption, kServer, Counted("") + "the default") +
                                        Reply(kListOption, kServer, Counted("a/b") + "Füße") +
                                        Reply(kListOption, kServer, Counted("disk")) +
                                        Reply(kListOption, kAck));
  ExpectGoesOn();
}

TEST_F(HandshakeTest, EmptyList) {
  exports_.Remove("disk");
  Connect();
  EXPECT_EQ(Send(Opt(kListOption)), Reply(kListOption, kAck));
}

// "the server SHOULD reject a request that includes data with NBD_REP_ERR_INVALID".
TEST_F(HandshakeTest, ListAndStructuredReplyTakeNoData) {
  Connect();
  EXPECT_EQ(ErrorType(kListOption, "x"), kInvalid);
  EXPECT_EQ(ErrorType(kStructuredOption, "x"), kInvalid);
  // Refused, so not negotiated: no NBD_FLAG_SEND_DF.
  EXPECT_EQ(Send(Opt(kGoOption, Wish("disk"))),
            Reply(kGoOption, kInfo, U16(0) + SizeAndFlags()) + Reply(kGoOption, kAck));
}

// A list is written as it is sent, and goes on at the right place when exports come and go meanwhile.
TEST_F(HandshakeTest, LongListInBoundedMemory) {
  exports_.Remove("disk");
  const std::string long_name(4000, 'n');
  std::string expected;
  for (int i = 1000; i < 2000; ++i) {
    Add(absl::StrCat(i, long_name));
    if (i != 1999) expected += Reply(kListOption, kServer, Counted(absl::StrCat(i, long_name)));
  }
  Connect();
  const std::string request = Opt(kListOption);
  handshake_->Consume({reinterpret_cast<const uint8_t*>(request.data()), request.size()});
  exports_.Remove(absl::StrCat(1999, long_name));
  exports_.Remove(absl::StrCat(1000, long_name));  // Sent, or about to be.
  EXPECT_EQ(Output(), expected + Reply(kListOption, kAck));
  EXPECT_LT(largest_output_, 64u << 10);
  ExpectGoesOn();
}

// No reference may be left on a reactor between calls.
TEST_F(HandshakeTest, HoldsNoExportWhileAListWaits) {
  for (int i = 0; i < 100; ++i) Add(absl::StrCat(i, std::string(4000, 'n')));
  Connect();
  const std::string request = Opt(kListOption);
  handshake_->Consume({reinterpret_cast<const uint8_t*>(request.data()), request.size()});
  ASSERT_FALSE(handshake_->output().empty());
  EXPECT_EQ(exports_.Remove("disk").use_count(), 1);
}

// NBD_OPT_STARTTLS in "NOTLS mode": POLICY or UNSUP, and never TLS_REQD; with data, INVALID is permitted.
TEST_F(HandshakeTest, StartTlsIsRefused) {
  Connect();
  EXPECT_EQ(Error(kStartTlsOption, ""),
            std::make_pair(kUnsup, std::string("this server does not offer TLS")));
  EXPECT_EQ(ErrorType(kStartTlsOption, "x"), kInvalid);
  ExpectGoesOn();
}

// NBD_REP_ERR_UNSUP: "The option sent by the client is unknown"; its data is skipped.
TEST_F(HandshakeTest, UnknownOptionsAreSkipped) {
  Connect();
  for (uint32_t option : {0u, kPeekOption, kExtendedOption, 12u, 0xffffffffu}) {
    EXPECT_EQ(ErrorType(option, ""), kUnsup) << option;
    EXPECT_EQ(ErrorType(option, Opt(kListOption)), kUnsup) << option;
    EXPECT_EQ(ErrorType(option, std::string(100'000, 'x')), kUnsup) << option;
  }
  ExpectGoesOn();
}

// NBD_OPT_GO: NBD_INFO_EXPORT, then NBD_REP_ACK, no zeroes, and the transmission phase at once.
TEST_F(HandshakeTest, Go) {
  Connect(1);
  EXPECT_EQ(Send(Opt(kGoOption, Wish("disk"))),
            Reply(kGoOption, kInfo, U16(0) + SizeAndFlags()) + Reply(kGoOption, kAck));
  ASSERT_TRUE(handshake_->negotiated());
  EXPECT_EQ(handshake_->wanted(), 0u);
  EXPECT_EQ(handshake_->TakeNegotiated().served->name, "disk");
  EXPECT_EQ(admitted_, std::vector<std::string>{"disk"});
}

// NBD_OPT_INFO: the same answer, and the negotiation goes on.
TEST_F(HandshakeTest, Info) {
  Connect();
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("disk"))),
            Reply(kInfoOption, kInfo, U16(0) + SizeAndFlags()) + Reply(kInfoOption, kAck));
  EXPECT_FALSE(handshake_->finished());
  EXPECT_TRUE(admitted_.empty());
  ExpectGoesOn();
}

// NBD_REP_INFO's information types: on request, each once, and unknown ones are ignored. "Size constraints".
TEST_F(HandshakeTest, InfoOnRequest) {
  Add("described", "what it is");
  Connect();
  const std::string reply_export = Reply(kInfoOption, kInfo, U16(0) + SizeAndFlags());
  const std::string block_size = Reply(kInfoOption, kInfo, U16(3) + U32(1) + U32(4096) + U32(32 << 20));
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("described", {3, 77, 2, 1, 0, 0xffff}))),
            reply_export + Reply(kInfoOption, kInfo, U16(1) + "described") +
                Reply(kInfoOption, kInfo, U16(2) + "what it is") + block_size + Reply(kInfoOption, kAck));
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("disk", {2, 3}))),
            reply_export + block_size + Reply(kInfoOption, kAck));
}

// "Transmission flags": read-only, and what is of no use then is not promised.
TEST_F(HandshakeTest, ReadOnlyExport) {
  Add("cdrom", "", true);
  Connect();
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("cdrom"))),
            Reply(kInfoOption, kInfo, U16(0) + U64(kSize) + U16(0x0001 | 0x0002 | 0x0004 | 0x0008 | 0x0400)) +
                Reply(kInfoOption, kAck));
}

// NBD_REP_ERR_UNKNOWN, with a text for a human being, and the client may try another.
TEST_F(HandshakeTest, UnknownExport) {
  Connect();
  for (uint32_t option : {kInfoOption, kGoOption}) {
    const auto [type, text] = Error(option, Wish("dist"));
    EXPECT_EQ(type, kUnknown);
    EXPECT_TRUE(absl::StrContains(text, "no export 'dist'")) << text;
  }
  EXPECT_EQ(ErrorType(kGoOption, Wish(std::string(4096, 'n'))), kUnknown);
  EXPECT_EQ(ErrorType(kGoOption, Wish("../disk")), kUnknown);
  ExpectGoesOn();
}

TEST_F(HandshakeTest, LongestNameIsServed) {
  const std::string name = "\u20ac" + std::string(4093, 'n');
  Add(name);
  Connect();
  EXPECT_EQ(Send(Opt(kGoOption, Wish(name, {1}))), Reply(kGoOption, kInfo, U16(0) + SizeAndFlags()) +
                                                       Reply(kGoOption, kInfo, U16(1) + name) +
                                                       Reply(kGoOption, kAck));
  Connect();
  EXPECT_EQ(Send(Opt(kExportNameOption, name)), SizeAndFlags());
}

// "length of name ... MUST be no larger than the option data length - 6", and so on.
TEST_F(HandshakeTest, MalformedInfoRequests) {
  Connect();
  const std::vector<std::string> malformed = {
      "",
      U32(0),
      U32(0) + std::string(1, '\0'),
      U32(5) + "disk" + U16(0),
      U32(0xffffffff) + "disk" + U16(0),
      U32(3) + "disk" + U16(0),
      Counted("disk") + U16(1),
      Counted("disk") + U16(0) + "x",
      Counted("disk") + U16(0) + U16(3),
      Counted("disk") + U16(0xffff) + U16(3),
      Wish(absl::string_view("di\0k", 4)),
      Wish("\xff\xfe"),
  };
  for (const std::string& data : malformed) {
    for (uint32_t option : {kInfoOption, kGoOption}) {
      const auto [type, text] = Error(option, data);
      EXPECT_EQ(type, kInvalid) << text;
      EXPECT_FALSE(text.empty());
    }
  }
  ExpectGoesOn();
}

// "Conventions": strings "MUST be no longer than 4096 bytes". NBD_REP_ERR_TOO_BIG.
TEST_F(HandshakeTest, TooLongNames) {
  Connect();
  const auto [type, text] = Error(kGoOption, Wish(std::string(10'000, 'n')));
  EXPECT_EQ(type, kTooBig);
  EXPECT_TRUE(absl::StrContains(text, "10000 bytes, of at most 4096")) << text;
  EXPECT_EQ(ErrorType(kGoOption, Wish(std::string(4097, 'n'))), kTooBig);
  EXPECT_EQ(ErrorType(kListMetaOption, Queries(std::string(4097, 'n'), {})), kTooBig);
  ExpectGoesOn();
}

// The empty name: "reserved for a default export".
TEST_F(HandshakeTest, DefaultExport) {
  Connect();  // The only one there is. NBD_INFO_NAME gives its canonical name.
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("", {1}))), Reply(kInfoOption, kInfo, U16(0) + SizeAndFlags()) +
                                                       Reply(kInfoOption, kInfo, U16(1) + "disk") +
                                                       Reply(kInfoOption, kAck));
  Add("other");
  const auto [type, text] = Error(kGoOption, Wish(""));
  EXPECT_EQ(type, kUnknown);
  EXPECT_TRUE(absl::StrContains(text, "no default export")) << text;
  Add("");
  EXPECT_EQ(Send(Opt(kExportNameOption)), SizeAndFlags());
  EXPECT_EQ(handshake_->TakeNegotiated().served->name, "");

  options_.sole_export_is_default = false;
  exports_.Remove("");
  exports_.Remove("other");
  Connect();
  EXPECT_EQ(ErrorType(kGoOption, Wish("")), kUnknown);
}

// NBD_REP_ERR_POLICY.
TEST_F(HandshakeTest, RefusalReachesTheClientInWords) {
  admission_ = absl::ResourceExhaustedError("the export has 256 clients");
  Connect();
  EXPECT_EQ(Error(kGoOption, Wish("disk")),
            std::make_pair(kPolicy, std::string("the export has 256 clients")));
  EXPECT_FALSE(handshake_->finished());
  admission_ = absl::OkStatus();
  Send(Opt(kGoOption, Wish("disk")));
  EXPECT_TRUE(handshake_->negotiated());
}

// NBD_OPT_STRUCTURED_REPLY; "Transmission flags": NBD_FLAG_SEND_DF only with structured replies.
TEST_F(HandshakeTest, StructuredReply) {
  Connect();
  EXPECT_EQ(Send(Opt(kStructuredOption)), Reply(kStructuredOption, kAck));
  EXPECT_EQ(Send(Opt(kGoOption, Wish("disk"))),
            Reply(kGoOption, kInfo, U16(0) + SizeAndFlags(kDfFlag)) + Reply(kGoOption, kAck));
  EXPECT_EQ(handshake_->TakeNegotiated().reply_style, ReplyStyle::kStructured);
  Connect();
  Send(Opt(kStructuredOption));
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), SizeAndFlags(kDfFlag));
}

// NBD_OPT_LIST_META_CONTEXT and "Metadata querying".
TEST_F(HandshakeTest, ListMetaContext) {
  Connect();
  Send(Opt(kStructuredOption));
  const std::string ack = Reply(kListMetaOption, kAck);
  const std::string allocation = Reply(kListMetaOption, kMeta, U32(0) + "base:allocation") + ack;
  // "If zero queries are sent, then the server MUST return all".
  EXPECT_EQ(Send(Opt(kListMetaOption, Queries("disk", {}))), allocation);
  // `base:` is a wildcard.
  EXPECT_EQ(Send(Opt(kListMetaOption, Queries("disk", {"base:"}))), allocation);
  EXPECT_EQ(Send(Opt(kListMetaOption, Queries("disk", {"base:allocation", "base:"}))), allocation);
  // Unknown namespaces MUST be ignored, unknown leaf names too; "the server MUST send a single reply of type
  // NBD_REP_ACK".
  EXPECT_EQ(Send(Opt(kListMetaOption, Queries("disk", {"qemu:", "x-mine:all", "base:alloc", "base:*"}))),
            ack);
  EXPECT_EQ(Send(Opt(kListMetaOption, Queries("disk", {"qemu:", "base:allocation"}))), allocation);
  EXPECT_EQ(ErrorType(kListMetaOption, Queries("none", {})), kUnknown);
  // It selects nothing.
  Send(Opt(kGoOption, Wish("disk")));
  EXPECT_TRUE(handshake_->TakeNegotiated().contexts.empty());
}

// NBD_OPT_SET_META_CONTEXT.
TEST_F(HandshakeTest, SetMetaContext) {
  Connect();
  Send(Opt(kStructuredOption));
  EXPECT_EQ(Send(Opt(kSetMetaOption,
                     Queries("disk", {"qemu:dirty-bitmap:b", "base:allocation", "base:allocation"}))),
            Reply(kSetMetaOption, kMeta, U32(1) + "base:allocation") + Reply(kSetMetaOption, kAck));
  Send(Opt(kGoOption, Wish("disk")));
  EXPECT_EQ(handshake_->TakeNegotiated().contexts, (std::vector<MetaContext>{{1, "base:allocation"}}));
}

// "`base:` - the server MUST ignore this form during NBD_OPT_SET_META_CONTEXT"; "If zero queries are sent,
// the server MUST select no metadata contexts."
TEST_F(HandshakeTest, SetMetaContextOfNothing) {
  for (const std::vector<std::string>& queries :
       {std::vector<std::string>{}, {"base:"}, {"base:none"}, {"x-mine:base:allocation"}}) {
    Connect();
    Send(Opt(kStructuredOption));
    Send(Opt(kSetMetaOption, Queries("disk", {"base:allocation"})));
    EXPECT_EQ(Send(Opt(kSetMetaOption, Queries("disk", queries))), Reply(kSetMetaOption, kAck));
    Send(Opt(kGoOption, Wish("disk")));
    EXPECT_TRUE(handshake_->TakeNegotiated().contexts.empty());
  }
}

// "replaces all previously-set metadata contexts (including when this command fails)".
TEST_F(HandshakeTest, FailedSetMetaContextSelectsNothing) {
  options_.max_option_length = 5000;
  for (const std::string& data : {Queries("none", {"base:allocation"}), Queries("disk", {"no colon"}),
                                  std::string("x"), std::string(6000, 'x')}) {
    Connect();
    Send(Opt(kStructuredOption));
    Send(Opt(kSetMetaOption, Queries("disk", {"base:allocation"})));
    EXPECT_GE(ErrorType(kSetMetaOption, data), kUnsup);
    Send(Opt(kGoOption, Wish("disk")));
    EXPECT_TRUE(handshake_->TakeNegotiated().contexts.empty());
  }
}

// "the same export name that was ultimately selected for transmission phase".
TEST_F(HandshakeTest, MetaContextIsOfOneExport) {
  Add("other");
  Connect();
  Send(Opt(kStructuredOption));
  Send(Opt(kSetMetaOption, Queries("other", {"base:allocation"})));
  Send(Opt(kGoOption, Wish("disk")));
  EXPECT_TRUE(handshake_->TakeNegotiated().contexts.empty());
}

// "This option MUST NOT be requested unless structured replies have been negotiated first ... a server
// SHOULD send NBD_REP_ERR_INVALID." For the list, which is harmless, that is a MAY.
TEST_F(HandshakeTest, SetMetaContextNeedsStructuredReplies) {
  Connect();
  EXPECT_EQ(ErrorType(kSetMetaOption, Queries("disk", {"base:allocation"})), kInvalid);
  EXPECT_EQ(Send(Opt(kListMetaOption, Queries("disk", {"base:"}))),
            Reply(kListMetaOption, kMeta, U32(0) + "base:allocation") + Reply(kListMetaOption, kAck));
}

// "If the option request is syntactically invalid ..., the server MUST fail the request with
// NBD_REP_ERR_INVALID."
TEST_F(HandshakeTest, MalformedMetaContextRequests) {
  Connect();
  Send(Opt(kStructuredOption));
  const std::vector<std::string> malformed = {
      "",
      Counted("disk"),
      Counted("disk") + U32(1),
      Counted("disk") + U32(0xffffffff),
      Counted("disk") + U32(0xffffffff) + Counted("base:"),
      U32(99) + "disk" + U32(0),
      Queries("disk", {"base:allocation"}) + "x",
      Counted("disk") + U32(1) + U32(16) + "base:allocation",
      Counted("disk") + U32(1) + U32(0xffffffff) + "base:allocation",
      Queries("disk", {""}),
      Queries("disk", {":leaf"}),
      Queries("disk", {"no colon"}),
      Queries("disk", {"x:\xff"}),
      Queries("disk", {"x:" + std::string(4095, 'x')}),
  };
  for (const std::string& data : malformed) {
    for (uint32_t option : {kListMetaOption, kSetMetaOption}) EXPECT_EQ(ErrorType(option, data), kInvalid);
  }
  ExpectGoesOn();
}

TEST_F(HandshakeTest, TooBigOptionsAreReadAndRefused) {
  Connect();
  EXPECT_EQ(ErrorType(kGoOption, std::string(65'537, 'x')), kTooBig);
  EXPECT_EQ(ErrorType(kListMetaOption, std::string(200'000, 'x')), kTooBig);
  ExpectGoesOn();
}

// "if a server believes a client's behaviour constitutes a denial of service, it MAY initiate a hard
// disconnect".
TEST_F(HandshakeTest, EndlessDataIsNotRead) {
  for (uint32_t option : {kAbortOption, kListOption, kGoOption, kSetMetaOption, 99u}) {
    Connect();
    EXPECT_EQ(Send("IHAVEOPT" + U32(option) + U32(0xffffffff)), "");
    ExpectClosed(absl::StatusCode::kResourceExhausted);
  }
  Connect();
  for (int i = 0; i < 10; ++i) EXPECT_EQ(ErrorType(99, std::string(100'000, 'x')), kUnsup);
  EXPECT_EQ(Send(Opt(99, std::string(100'000, 'x'))), "");
  ExpectClosed(absl::StatusCode::kResourceExhausted);
}

TEST_F(HandshakeTest, EndlessOptionsAreNotAnswered) {
  options_.max_options = 100;
  Connect();
  for (int i = 0; i < 100; ++i) EXPECT_EQ(Send(Opt(kStructuredOption)), Reply(kStructuredOption, kAck));
  EXPECT_EQ(Send(Opt(kStructuredOption)), "");
  ExpectClosed(absl::StatusCode::kResourceExhausted);
}

// "SHOULD error further options received (other than an NBD_OPT_ABORT) with NBD_REP_ERR_SHUTDOWN".
TEST_F(HandshakeTest, Shutdown) {
  Connect();
  handshake_->BeginShutdown();
  for (uint32_t option : {kListOption, kGoOption, kInfoOption, kStructuredOption, kSetMetaOption, 99u}) {
    EXPECT_EQ(ErrorType(option, Wish("disk")), kShutdown);
  }
  EXPECT_EQ(Send(Opt(kAbortOption)), Reply(kAbortOption, kAck));
  ExpectClosed(absl::StatusCode::kCancelled);
  Connect();
  handshake_->BeginShutdown();
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), "");
  ExpectClosed(absl::StatusCode::kUnavailable);
}

// A client that asks and does not listen is not read from.
TEST_F(HandshakeTest, NothingIsReadWhileThereIsOutput) {
  Connect();
  const std::string two = Opt(kListOption) + Opt(kListOption);
  const auto* data = reinterpret_cast<const uint8_t*>(two.data());
  EXPECT_EQ(handshake_->Consume({data, two.size()}), two.size() / 2);
  EXPECT_EQ(handshake_->wanted(), 0u);
  EXPECT_EQ(handshake_->Consume({data, two.size()}), 0u);
}

// Whatever follows the negotiation belongs to the transmission phase.
TEST_F(HandshakeTest, WantsNotOneByteTooMany) {
  Connect();
  EXPECT_EQ(handshake_->wanted(), 16u);
  Send(std::string("IHAVE"));
  EXPECT_EQ(handshake_->wanted(), 11u);
  Send("OPT" + U32(kExportNameOption) + U32(4));
  EXPECT_EQ(handshake_->wanted(), 4u);
  const std::string more = "disk\x25\x60\x95\x13";
  EXPECT_EQ(handshake_->Consume({reinterpret_cast<const uint8_t*>(more.data()), more.size()}), 4u);
  EXPECT_TRUE(handshake_->negotiated());
}

TEST_F(HandshakeTest, AnySplitGivesTheSameAnswers) {
  Add("other", "a description");
  const std::string conversation =
      Opt(kStructuredOption) + Opt(99, std::string(1000, 'x')) + Opt(kListOption) +
      Opt(kListMetaOption, Queries("disk", {"base:"})) + Opt(kGoOption, Wish(std::string(5000, 'n'))) +
      Opt(kSetMetaOption, Queries("disk", {"base:allocation"})) + Opt(kInfoOption, Wish("other", {1, 2, 3})) +
      Opt(kGoOption, std::string(70'000, 'x')) + Opt(kGoOption, Wish("disk", {3}));
  Connect();
  const std::string expected = Send(conversation);
  ASSERT_TRUE(handshake_->negotiated());
  for (size_t piece : {1, 2, 3, 5, 7, 15, 16, 17, 19, 31, 64, 1000}) {
    piece_ = piece;
    Connect();
    EXPECT_EQ(Send(conversation), expected) << piece;
    ASSERT_TRUE(handshake_->negotiated());
    EXPECT_EQ(handshake_->TakeNegotiated().contexts.size(), 1u);
  }
}

}  // namespace
}  // namespace berth::nbd
