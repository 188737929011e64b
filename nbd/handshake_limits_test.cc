// Bounds: of memory, of patience with what is malformed or endless, and of what is read.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nbd/handshake_fixture.h"

namespace berth::nbd {
namespace {

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

// As nbdinfo --list and qemu-nbd --list do: they ask after each export that a list named.
TEST_F(HandshakeTest, WhatWasListedMayBeAskedAfter) {
  options_.max_options = 10;
  for (int i = 0; i < 99; ++i) Add(absl::StrCat(i));
  Connect();
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(Send(Opt(kListOption)).empty());
  // However often it was listed.
  for (int i = 0; i < 100 * 4 + 8; ++i) ASSERT_EQ(ErrorType(kInfoOption, Wish("none")), kUnknown) << i;
  EXPECT_EQ(Send(Opt(kInfoOption, Wish("disk"))), "");
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
  // A server that stops may refuse before it tells the handshake.
  Connect();
  admission_ = absl::UnavailableError("the server is stopping");
  EXPECT_EQ(ErrorType(kGoOption, Wish("disk")), kShutdown);
  admission_ = absl::OkStatus();
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
