// NBD_OPT_EXTENDED_HEADERS, as the branch extension-ext-header of the specification describes it.
#include <string>
#include <vector>

#include "nbd/handshake_fixture.h"

namespace berth::nbd {
namespace {

// "NBD_REP_ACK: Extended headers have been negotiated"; NBD_FLAG_SEND_DF, but NBD_FLAG_BLOCK_STATUS_PAYLOAD
// only with a context.
TEST_F(HandshakeTest, ExtendedHeaders) {
  Connect();
  EXPECT_EQ(Send(Opt(kExtendedOption)), Reply(kExtendedOption, kAck));
  EXPECT_EQ(Send(Opt(kGoOption, Wish("disk"))),
            Reply(kGoOption, kInfo, U16(0) + SizeAndFlags(kDfFlag)) + Reply(kGoOption, kAck));
  EXPECT_EQ(handshake_->TakeNegotiated().reply_style, ReplyStyle::kExtended);
}

// "A client MAY request structured replies first", and extended headers take precedence.
TEST_F(HandshakeTest, ExtendedHeadersTakePrecedenceOverStructuredReplies) {
  Connect();
  Send(Opt(kStructuredOption));
  EXPECT_EQ(Send(Opt(kExtendedOption)), Reply(kExtendedOption, kAck));
  Send(Opt(kGoOption, Wish("disk")));
  EXPECT_EQ(handshake_->TakeNegotiated().reply_style, ReplyStyle::kExtended);
}

// NBD_OPT_STRUCTURED_REPLY: NBD_REP_ERR_EXT_HEADER_REQD after extended headers, which stay.
TEST_F(HandshakeTest, ThereIsNoWayBackToStructuredReplies) {
  Connect();
  Send(Opt(kExtendedOption));
  const auto [type, text] = Error(kStructuredOption, "");
  EXPECT_EQ(type, kExtHeaderReqd);
  EXPECT_FALSE(text.empty());
  EXPECT_EQ(Send(Opt(kExtendedOption)), Reply(kExtendedOption, kAck));
  Send(Opt(kGoOption, Wish("disk")));
  EXPECT_EQ(handshake_->TakeNegotiated().reply_style, ReplyStyle::kExtended);
}

// "Once extended headers are successfully requested, a client MUST NOT use NBD_OPT_EXPORT_NAME."
TEST_F(HandshakeTest, ExportNameAfterExtendedHeadersClosesTheConnection) {
  Connect();
  Send(Opt(kExtendedOption));
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), "");
  ExpectClosed(absl::StatusCode::kInvalidArgument);
}

// Contexts need structured replies or extended headers; NBD_FLAG_BLOCK_STATUS_PAYLOAD only with both.
TEST_F(HandshakeTest, ContextsWithExtendedHeaders) {
  Add("other");
  Connect();
  Send(Opt(kExtendedOption));
  EXPECT_EQ(Send(Opt(kSetMetaOption, Queries("disk", {"base:allocation"}))),
            Reply(kSetMetaOption, kMeta, U32(1) + "base:allocation") + Reply(kSetMetaOption, kAck));
  // Of the other export none is selected.
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("other"))),
            Reply(kInfoOption, kInfo, U16(0) + SizeAndFlags(kDfFlag)) + Reply(kInfoOption, kAck));
  EXPECT_EQ(
      Send(Opt(kGoOption, Wish("disk"))),
      Reply(kGoOption, kInfo, U16(0) + SizeAndFlags(kDfFlag | kStatusPayloadFlag)) + Reply(kGoOption, kAck));
  EXPECT_EQ(handshake_->TakeNegotiated().contexts.size(), 1u);
}

// "Servers MUST NOT advertise this bit unless the client successfully negotiates extended headers".
TEST_F(HandshakeTest, NoStatusPayloadWithStructuredReplies) {
  Connect();
  Send(Opt(kStructuredOption));
  Send(Opt(kSetMetaOption, Queries("disk", {"base:allocation"})));
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("disk"))),
            Reply(kInfoOption, kInfo, U16(0) + SizeAndFlags(kDfFlag)) + Reply(kInfoOption, kAck));
}

}  // namespace
}  // namespace berth::nbd
