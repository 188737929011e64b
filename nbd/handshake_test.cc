// What a client may ask for, and what it is told.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "nbd/handshake_fixture.h"

namespace berth::nbd {
namespace {

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
TEST_F(HandshakeTest, ListStructuredReplyAndExtendedHeadersTakeNoData) {
  Connect();
  EXPECT_EQ(ErrorType(kListOption, "x"), kInvalid);
  EXPECT_EQ(ErrorType(kStructuredOption, "x"), kInvalid);
  EXPECT_EQ(ErrorType(kExtendedOption, "x"), kInvalid);
  // Refused, so not negotiated: no NBD_FLAG_SEND_DF.
  EXPECT_EQ(Send(Opt(kGoOption, Wish("disk"))),
            Reply(kGoOption, kInfo, U16(0) + SizeAndFlags()) + Reply(kGoOption, kAck));
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
  for (uint32_t option : {0u, kPeekOption, 12u, 0xffffffffu}) {
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

// The empty name: "reserved for a default export".
TEST_F(HandshakeTest, DefaultExport) {
  Connect();  // There is one, but not of this name.
  EXPECT_EQ(ErrorType(kGoOption, Wish("")), kUnknown);
  options_.sole_export_is_default = true;
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

}  // namespace
}  // namespace berth::nbd
