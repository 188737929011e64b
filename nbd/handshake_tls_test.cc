// NBD_OPT_STARTTLS and the three modes of "Server-side requirements", without any TLS.
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nbd/handshake_fixture.h"

namespace berth::nbd {
namespace {

constexpr uint32_t kTlsReqd = 0x80000005;

class TlsHandshakeTest : public HandshakeTest {
 protected:
  void SetUp() override {
    auto secret = std::make_shared<Export>();
    secret->name = "secret";
    secret->device = std::make_shared<NullDevice>(kSize);
    secret->require_tls = true;
    ASSERT_TRUE(exports_.Add(std::move(secret)));
  }
  void ConnectIn(TlsMode mode, uint32_t client_flags = 3) {
    options_.tls = mode;
    Connect(client_flags);
  }
  void StartTls() {
    EXPECT_EQ(Send(Opt(kStartTlsOption)), Reply(kStartTlsOption, kAck));
    ASSERT_TRUE(handshake_->wants_tls());
    handshake_->TlsStarted();
    EXPECT_FALSE(handshake_->wants_tls());
  }
  std::string List() { return Send(Opt(kListOption)); }
  static std::string Listed(const std::vector<std::string>& names) {
    std::string replies;
    for (const std::string& name : names) replies += Reply(kListOption, kServer, Counted(name));
    return replies + Reply(kListOption, kAck);
  }
};

// "FORCEDTLS mode": every option but STARTTLS and ABORT, known or not, is answered TLS_REQD.
TEST_F(TlsHandshakeTest, RequiredTlsComesBeforeEveryOption) {
  ConnectIn(TlsMode::kRequire);
  for (const uint32_t option : {kListOption, kPeekOption, kInfoOption, kGoOption, kStructuredOption,
                                kListMetaOption, kSetMetaOption, kExtendedOption, 99u}) {
    for (const std::string& data : {std::string(), Wish("disk"), Wish("nothing"), std::string(70000, 'x')}) {
      const auto [type, text] = Error(option, data);
      EXPECT_EQ(type, kTlsReqd) << option;
      EXPECT_EQ(text, "this server requires TLS; start it with NBD_OPT_STARTTLS");
    }
  }
  EXPECT_TRUE(admitted_.empty());
  StartTls();
  EXPECT_EQ(List(), Listed({"disk", "secret"}));
}

// "If the server receives a request to enter transmission mode via NBD_OPT_EXPORT_NAME ... it MUST
// terminate".
TEST_F(TlsHandshakeTest, RequiredTlsEndsASessionThatAsksByExportName) {
  ConnectIn(TlsMode::kRequire);
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), "");
  ExpectClosed(absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(admitted_.empty());
  // A client that does not speak fixed newstyle cannot have TLS.
  ConnectIn(TlsMode::kRequire, 0);
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), "");
  ExpectClosed(absl::StatusCode::kPermissionDenied);
}

TEST_F(TlsHandshakeTest, RequiredTlsLetsAClientLeave) {
  ConnectIn(TlsMode::kRequire);
  EXPECT_EQ(Send(Opt(kAbortOption)), Reply(kAbortOption, kAck));
  ExpectClosed(absl::StatusCode::kCancelled);
}

// "The server MUST NOT send NBD_REP_ERR_TLS_REQD in reply to any option if TLS has already been initiated",
// and a second STARTTLS is INVALID.
TEST_F(TlsHandshakeTest, UnderTlsNobodyIsSentToTls) {
  for (const TlsMode mode : {TlsMode::kAllow, TlsMode::kRequire}) {
    ConnectIn(mode);
    StartTls();
    EXPECT_EQ(ErrorType(kStartTlsOption, ""), kInvalid);
    EXPECT_FALSE(handshake_->wants_tls());
    EXPECT_EQ(ErrorType(kGoOption, Wish("nothing")), kUnknown);
    EXPECT_EQ(ErrorType(kPeekOption, ""), kUnsup);
    EXPECT_EQ(ErrorType(kListOption, "x"), kInvalid);
    EXPECT_NE(Send(Opt(kGoOption, Wish("secret"))), "");
    EXPECT_TRUE(handshake_->negotiated());
    EXPECT_EQ(handshake_->TakeNegotiated().served->name, "secret");
  }
}

// "SELECTIVETLS mode".
TEST_F(TlsHandshakeTest, AllowedTlsShowsAnUnencryptedClientTheRest) {
  ConnectIn(TlsMode::kAllow);
  EXPECT_EQ(List(), Listed({"disk"}));
  for (const uint32_t option : {kInfoOption, kGoOption}) {
    // And no NBD_REP_INFO before the error.
    EXPECT_EQ(Error(option, Wish("secret")),
              std::make_pair(kTlsReqd,
                             std::string("export 'secret' requires TLS; start it with NBD_OPT_STARTTLS")));
    EXPECT_EQ(ErrorType(option, Wish("nothing")), kUnknown);
  }
  // "MUST NOT send NBD_REP_ERR_TLS_REQD in response to any option other than" those two.
  EXPECT_EQ(Send(Opt(kStructuredOption)), Reply(kStructuredOption, kAck));
  EXPECT_EQ(ErrorType(kListMetaOption, Queries("secret", {})), kPolicy);
  EXPECT_EQ(ErrorType(kSetMetaOption, Queries("secret", {"base:allocation"})), kPolicy);
  EXPECT_TRUE(admitted_.empty());
  EXPECT_NE(Send(Opt(kGoOption, Wish("disk"))), "");
  EXPECT_TRUE(handshake_->negotiated());
}

TEST_F(TlsHandshakeTest, AllowedTlsEndsASessionThatAsksForASecretByExportName) {
  ConnectIn(TlsMode::kAllow);
  EXPECT_EQ(Send(Opt(kExportNameOption, "secret")), "");
  ExpectClosed(absl::StatusCode::kPermissionDenied);
  ConnectIn(TlsMode::kAllow);
  EXPECT_NE(Send(Opt(kExportNameOption, "disk")), "");
  EXPECT_TRUE(handshake_->negotiated());
}

TEST_F(TlsHandshakeTest, AllowedTlsShowsEverythingUnderTls) {
  ConnectIn(TlsMode::kAllow);
  StartTls();
  EXPECT_EQ(List(), Listed({"disk", "secret"}));
  EXPECT_NE(Send(Opt(kExportNameOption, "secret")), "");
  EXPECT_TRUE(handshake_->negotiated());
}

// "NOTLS mode": never TLS_REQD.
TEST_F(TlsHandshakeTest, WithoutTlsASecretIsForNobody) {
  ConnectIn(TlsMode::kOff);
  EXPECT_EQ(ErrorType(kStartTlsOption, ""), kUnsup);
  EXPECT_FALSE(handshake_->wants_tls());
  EXPECT_EQ(List(), Listed({"disk"}));
  EXPECT_EQ(Error(kGoOption, Wish("secret")),
            std::make_pair(
                kPolicy, std::string("export 'secret' is for TLS alone, which this server does not offer")));
}

TEST_F(TlsHandshakeTest, StartTlsTakesNoData) {
  ConnectIn(TlsMode::kRequire);
  EXPECT_EQ(ErrorType(kStartTlsOption, "x"), kInvalid);
  EXPECT_FALSE(handshake_->wants_tls());
  StartTls();
}

// NBD_OPT_STARTTLS: what was negotiated before must be negotiated again.
TEST_F(TlsHandshakeTest, NothingThatWasNegotiatedInClearSurvives) {
  ConnectIn(TlsMode::kAllow);
  EXPECT_EQ(Send(Opt(kStructuredOption)), Reply(kStructuredOption, kAck));
  EXPECT_NE(Send(Opt(kSetMetaOption, Queries("disk", {"base:allocation"}))), "");
  StartTls();
  EXPECT_EQ(ErrorType(kSetMetaOption, Queries("disk", {"base:allocation"})), kInvalid)
      << "needs structured replies";
  EXPECT_NE(Send(Opt(kGoOption, Wish("disk"))), "");
  ASSERT_TRUE(handshake_->negotiated());
  const Negotiated negotiated = handshake_->TakeNegotiated();
  EXPECT_EQ(negotiated.reply_style, ReplyStyle::kSimple);
  EXPECT_TRUE(negotiated.contexts.empty());

  ConnectIn(TlsMode::kAllow);
  EXPECT_EQ(Send(Opt(kExtendedOption)), Reply(kExtendedOption, kAck));
  StartTls();
  EXPECT_NE(Send(Opt(kExportNameOption, "disk")), "") << "not allowed with extended headers";
  EXPECT_TRUE(handshake_->negotiated());
}

TEST_F(TlsHandshakeTest, TheClientsFlagsStay) {
  ConnectIn(TlsMode::kRequire, 3);
  StartTls();
  // No zeroes, as the flags said before TLS.
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), SizeAndFlags());
}

// Bytes that came in clear behind STARTTLS are not taken as encrypted ones: they stay where TLS finds, and
// refuses, them.
TEST_F(TlsHandshakeTest, NothingIsReadBetweenStartTlsAndTls) {
  for (const TlsMode mode : {TlsMode::kAllow, TlsMode::kRequire}) {
    ConnectIn(mode);
    const std::string injected = Opt(kStartTlsOption) + Opt(kGoOption, Wish("disk"));
    const auto* bytes = reinterpret_cast<const uint8_t*>(injected.data());
    EXPECT_EQ(handshake_->wanted(), 16u);
    EXPECT_EQ(handshake_->Consume({bytes, injected.size()}), 16u);
    EXPECT_EQ(handshake_->wanted(), 0u);
    EXPECT_EQ(Output(), Reply(kStartTlsOption, kAck));
    EXPECT_TRUE(handshake_->wants_tls());
    EXPECT_EQ(handshake_->wanted(), 0u);
    EXPECT_EQ(handshake_->Consume({bytes + 16, injected.size() - 16}), 0u);
    EXPECT_FALSE(handshake_->finished());
  }
}

TEST_F(TlsHandshakeTest, AStoppingServerStartsNoTls) {
  ConnectIn(TlsMode::kRequire);
  handshake_->BeginShutdown();
  EXPECT_EQ(ErrorType(kStartTlsOption, ""), kShutdown);
  EXPECT_EQ(ErrorType(kGoOption, Wish("disk")), kShutdown);
  EXPECT_FALSE(handshake_->wants_tls());
}

TEST_F(TlsHandshakeTest, OptionsAreCountedAcrossTls) {
  options_.max_options = 3;
  ConnectIn(TlsMode::kAllow);
  EXPECT_EQ(ErrorType(99, ""), kUnsup);
  StartTls();
  EXPECT_EQ(ErrorType(99, ""), kUnsup);
  EXPECT_EQ(List(), "");
  ExpectClosed(absl::StatusCode::kResourceExhausted);
}

// Exports that the client's name may not know of.
TEST_F(TlsHandshakeTest, WhoIsNotAuthorizedKnowsNothing) {
  handshake_ = std::make_unique<Handshake>(
      exports_, options_,
      [this](const Export& served) {
        admitted_.push_back(served.name);
        return absl::OkStatus();
      },
      [](const Export& served) {
        return served.name == "disk" ? absl::PermissionDeniedError("not for you") : absl::OkStatus();
      });
  Add("open");
  Output();
  Send(U32(3));
  EXPECT_EQ(List(), Listed({"open"}));
  Send(Opt(kStructuredOption));
  const std::pair<uint32_t, std::string> refused(kPolicy, "not for you");
  EXPECT_EQ(Error(kInfoOption, Wish("disk")), refused);
  EXPECT_EQ(Error(kGoOption, Wish("disk")), refused);
  EXPECT_EQ(Error(kListMetaOption, Queries("disk", {})), refused);
  EXPECT_EQ(Error(kSetMetaOption, Queries("disk", {})), refused);
  EXPECT_TRUE(admitted_.empty());
  EXPECT_EQ(Send(Opt(kExportNameOption, "disk")), "");
  ExpectClosed(absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace berth::nbd
