// Structured replies and metadata contexts.
#include <string>
#include <utility>
#include <vector>

#include "nbd/handshake_fixture.h"

namespace berth::nbd {
namespace {

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

}  // namespace
}  // namespace berth::nbd
