#include "nbd/client/client_handshake.h"

#include <string>
#include <utility>
#include <vector>

#include "nbd/client/handshake_script.h"

namespace berth::nbd {
namespace {

class ClientHandshakeTest : public HandshakeScript {};

constexpr auto kProtocolBroken = absl::StatusCode::kInternal;

// The whole dialogue of a client that gets all it wants, byte by byte as the specification writes it.
TEST_F(ClientHandshakeTest, ExtendedHeadersContextsAndGo) {
  Start({.export_name = "disk"});
  EXPECT_EQ(handshake_->wanted(), 8u);
  Give(ServerGreeting(3));
  // The client flags, and NBD_OPT_EXTENDED_HEADERS (11) without data.
  EXPECT_EQ(Said(), Hex("00000003 49484156454F5054 0000000b 00000000"));
  Give(Hex("0003e889045565a9 0000000b 00000001 00000000"));
  // NBD_OPT_SET_META_CONTEXT (10): name, number of queries, queries.
  EXPECT_EQ(Said(), Hex("49484156454F5054 0000000a 0000001f 00000004") + "disk" + Hex("00000001 0000000f") +
                        "base:allocation");
  Give(ServerReply(10, kContextReply, Hex("00000007") + "base:allocation") + ServerReply(10, kAckReply));
  EXPECT_EQ(Said(), Hex("49484156454F5054 00000007 00000010 00000004") + "disk" + Hex("0003 0001 0002 0003"));
  Give(ServerReply(7, kInfoReply, Hex("0000 0000000000100000 016d")) +
       ServerReply(7, kInfoReply, Hex("0001") + "the disk") +
       ServerReply(7, kInfoReply, Hex("0002") + "of it") +
       ServerReply(7, kInfoReply, Hex("0003 00000200 00001000 02000000")) +
       ServerReply(7, kInfoReply, Hex("00ff") + "what nobody knows"));
  EXPECT_FALSE(done());
  Give(ServerReply(7, kAckReply));
  ASSERT_TRUE(done());
  ASSERT_TRUE(handshake_->status().ok()) << handshake_->status();
  EXPECT_EQ(Said(), "");
  const Agreement agreement = handshake_->TakeAgreement();
  EXPECT_EQ(agreement.style, ReplyStyle::kExtended);
  EXPECT_EQ(agreement.info.name, "the disk");
  EXPECT_EQ(agreement.info.description, "of it");
  EXPECT_EQ(agreement.info.size, 1u << 20);
  EXPECT_EQ(agreement.info.flags, 0x16d);
  ASSERT_TRUE(agreement.info.block_sizes.has_value());
  EXPECT_EQ(agreement.info.block_sizes->minimum, 512u);
  EXPECT_EQ(agreement.info.block_sizes->preferred, 4096u);
  EXPECT_EQ(agreement.info.block_sizes->maximum_payload, 32u << 20);
  EXPECT_EQ(agreement.info.contexts, std::vector<MetaContext>({{7, "base:allocation"}}));
}

TEST_F(ClientHandshakeTest, FallsBackToStructuredReplies) {
  Start();
  Give(ServerGreeting());
  EXPECT_EQ(Said(), U32(3) + ClientOption(11));
  Give(ServerReply(11, kErrorReply + 1, "never heard of it"));
  EXPECT_EQ(Said(), ClientOption(8));
  Give(ServerReply(8, kAckReply));
  EXPECT_EQ(Said().substr(0, 12), ClientOption(10).substr(0, 12));
  // "the client MUST disregard any context replies that may have been sent" before an error.
  Give(ServerReply(10, kContextReply, U32(1) + "base:allocation") + ServerReply(10, kErrorReply + 1));
  EXPECT_EQ(Said(), ClientOption(7, InfoData("")));
  Give(ServerReply(7, kInfoReply, Hex("0000 0000000000000000 0001")) + ServerReply(7, kAckReply));
  ASSERT_TRUE(done());
  const Agreement agreement = handshake_->TakeAgreement();
  EXPECT_EQ(agreement.style, ReplyStyle::kStructured);
  EXPECT_TRUE(agreement.info.contexts.empty());
  EXPECT_FALSE(agreement.info.block_sizes.has_value());
}

// Without either, contexts cannot be had and are not asked for.
TEST_F(ClientHandshakeTest, FallsBackToSimpleRepliesAndToExportName) {
  Start({.export_name = "old"});
  Give(ServerGreeting(1));
  EXPECT_EQ(Said(), U32(1) + ClientOption(11));  // NBD_FLAG_C_NO_ZEROES only where it was offered.
  Give(ServerReply(11, kErrorReply + 1));
  EXPECT_EQ(Said(), ClientOption(8));
  Give(ServerReply(8, kErrorReply + 1));
  EXPECT_EQ(Said(), ClientOption(7, InfoData("old")));
  Give(ServerReply(7, kErrorReply + 1));
  EXPECT_EQ(Said(), ClientOption(1, "old"));
  Give(Hex("0000000000200000 0005"));
  EXPECT_FALSE(done());
  Give(std::string(124, '\0'));
  ASSERT_TRUE(done());
  ASSERT_TRUE(handshake_->status().ok());
  const Agreement agreement = handshake_->TakeAgreement();
  EXPECT_EQ(agreement.style, ReplyStyle::kSimple);
  EXPECT_EQ(agreement.info.name, "old");
  EXPECT_EQ(agreement.info.size, 2u << 20);
  EXPECT_EQ(agreement.info.flags, 5);
}

TEST_F(ClientHandshakeTest, ExportNameWithoutZeroes) {
  StartSimple();
  Give(ServerReply(7, kErrorReply + 1));
  EXPECT_EQ(Said(), ClientOption(1));
  EXPECT_NE(handshake_->awaited().find("it has no such export"), std::string::npos);
  Give(Hex("0000000000200000 0005"));
  EXPECT_TRUE(done() && handshake_->status().ok());
}

// NBD_OPT_EXTENDED_HEADERS: "a client MUST NOT use NBD_OPT_EXPORT_NAME".
TEST_F(ClientHandshakeTest, ExportNameIsNoWayOutOfExtendedHeaders) {
  Start({.contexts = {}});
  Give(ServerGreeting());
  Said();
  Give(ServerReply(11, kAckReply));
  EXPECT_EQ(Said(), ClientOption(7, InfoData("")));
  Give(ServerReply(7, kErrorReply + 1));
  ExpectError(absl::StatusCode::kUnimplemented, "refuses NBD_OPT_GO");
}

TEST_F(ClientHandshakeTest, TlsComesFirst) {
  Start({.export_name = "disk", .tls = true});
  Give(ServerGreeting());
  EXPECT_EQ(Said(), U32(3) + ClientOption(5));
  Give(ServerReply(5, kAckReply));
  EXPECT_EQ(handshake_->state(), ClientHandshake::State::kTls);
  EXPECT_EQ(handshake_->wanted(), 0u);  // The next byte belongs to TLS.
  EXPECT_EQ(Said(), "");
  handshake_->TlsStarted();
  EXPECT_EQ(handshake_->state(), ClientHandshake::State::kTalking);
  EXPECT_EQ(Said(), ClientOption(11));
}

TEST_F(ClientHandshakeTest, TlsRefusedIsTheEnd) {
  for (uint32_t error : {1u, 2u, 4u}) {
    Start({.tls = true});
    Give(ServerGreeting());
    Said();
    Give(ServerReply(5, kErrorReply + error, "not here"));
    ASSERT_TRUE(done());
    EXPECT_FALSE(handshake_->status().ok());
    EXPECT_NE(handshake_->status().message().find("there is no TLS"), absl::string_view::npos);
    EXPECT_NE(handshake_->status().message().find("\"not here\""), absl::string_view::npos);
    EXPECT_EQ(Said(), "");  // Nothing more in the clear.
  }
}

TEST_F(ClientHandshakeTest, TlsRequiredIsSaidWithTheWayOut) {
  Start();
  Give(ServerGreeting());
  Said();
  Give(ServerReply(11, kErrorReply + 5));
  ExpectError(absl::StatusCode::kUnauthenticated, "write the scheme with nbds");
}

TEST_F(ClientHandshakeTest, RefusalsAreToldInTheServersWords) {
  const std::pair<uint32_t, absl::StatusCode> cases[] = {
      {2, absl::StatusCode::kPermissionDenied}, {3, absl::StatusCode::kInvalidArgument},
      {5, absl::StatusCode::kUnauthenticated},  {6, absl::StatusCode::kNotFound},
      {7, absl::StatusCode::kUnavailable},      {8, absl::StatusCode::kFailedPrecondition},
      {9, absl::StatusCode::kInvalidArgument},  {10, absl::StatusCode::kFailedPrecondition},
      {0x7fffffff, absl::StatusCode::kUnknown},
  };
  for (const auto& [error, code] : cases) {
    StartSimple();
    Give(ServerReply(7, kInfoReply, Hex("0002") + "late") +
         ServerReply(7, kErrorReply + error, "no\x1b[31m Füße"));
    ExpectError(code, "\"no\\x1b[31m Füße\"");
  }
}

TEST_F(ClientHandshakeTest, ListsWhatTheServerHas) {
  Start({.goal = ClientHandshakeOptions::Goal::kList});
  Give(ServerGreeting());
  Said();
  Give(ServerReply(11, kAckReply));
  EXPECT_EQ(Said(), ClientOption(3));
  Give(ServerReply(3, kServerReply, WithLength("a") + "first") +
       ServerReply(3, kServerReply, WithLength("")) + ServerReply(3, kServerReply, WithLength("c")) +
       ServerReply(3, kAckReply));
  EXPECT_EQ(Said(), ClientOption(6, InfoData("a")));
  Give(ServerReply(6, kInfoReply, Hex("0000 0000000000000200 0003")) +
       ServerReply(6, kInfoReply, Hex("0001") + "canonical") + ServerReply(6, kAckReply));
  EXPECT_EQ(Said(), ClientOption(9, WithLength("a") + U32(0)));
  // "The metadata context ID in these replies is reserved and SHOULD be set to zero": may be the same.
  Give(ServerReply(9, kContextReply, U32(0) + "base:allocation") +
       ServerReply(9, kContextReply, U32(0) + "qemu:dirty-bitmap:b") + ServerReply(9, kAckReply));
  EXPECT_EQ(Said(), ClientOption(6, InfoData("")));
  Give(ServerReply(6, kErrorReply + 2, "go away"));
  EXPECT_EQ(Said(), ClientOption(6, InfoData("c")));
  Give(ServerReply(6, kInfoReply, Hex("0002") + "third") +
       ServerReply(6, kInfoReply, Hex("0000 0000000000000400 0003")) + ServerReply(6, kAckReply));
  Said();
  Give(ServerReply(9, kErrorReply + 1));
  ASSERT_TRUE(done());
  ASSERT_TRUE(handshake_->status().ok()) << handshake_->status();
  EXPECT_EQ(Said(), ClientOption(2));  // NBD_OPT_ABORT.
  const std::vector<ListedExport> list = handshake_->TakeList();
  ASSERT_EQ(list.size(), 3u);
  EXPECT_TRUE(list[0].status.ok());
  EXPECT_EQ(list[0].info.name, "a");
  EXPECT_EQ(list[0].info.description, "first");
  EXPECT_EQ(list[0].info.size, 512u);
  ASSERT_EQ(list[0].info.contexts.size(), 2u);
  EXPECT_EQ(list[0].info.contexts[1].name, "qemu:dirty-bitmap:b");
  EXPECT_EQ(list[1].info.name, "");
  EXPECT_EQ(list[1].status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(list[2].info.description, "third");
  EXPECT_TRUE(list[2].info.contexts.empty());
}

TEST_F(ClientHandshakeTest, AListMayBeRefused) {
  StartSimple({.goal = ClientHandshakeOptions::Goal::kList});
  Give(ServerReply(3, kErrorReply + 2));
  ExpectError(absl::StatusCode::kPermissionDenied, "refuses NBD_OPT_LIST");
}

TEST_F(ClientHandshakeTest, OtherServersAreNamed) {
  const std::pair<std::string, const char*> cases[] = {
      {"SSH-2.0-OpenSSH", "this is no NBD server: it begins with \"SSH-2.0-\""},
      {Hex("4e42444d41474943 0000420281861253") + std::string(136, '\0'), "oldstyle negotiation"},
      {Hex("4e42444d41474943 49484156454F5055 0003"), "its greeting has a wrong magic number"},
      {ServerGreeting(2), "newstyle negotiation in its first form"},
  };
  for (const auto& [bytes, error] : cases) {
    Start();
    Throw(bytes);
    ExpectError(kProtocolBroken, error);
  }
}

// What a server says in the place of an answer to NBD_OPT_GO.
TEST_F(ClientHandshakeTest, EveryLieIsNamed) {
  const std::string with_export = ServerReply(7, kInfoReply, Hex("0000 0000000000000200 0001"));
  const auto info = [](absl::string_view data) { return ServerReply(7, kInfoReply, data); };
  const std::pair<std::string, const char*> cases[] = {
      {std::string(20, 'x'), "wrong magic number"},
      {ServerReply(6, kAckReply), "it answers NBD_OPT_INFO, where NBD_OPT_GO was asked"},
      {ServerReply(99, kAckReply), "it answers option 99"},
      {ServerReply(7, kAckReply), "accepted without NBD_INFO_EXPORT"},
      {with_export + ServerReply(7, kAckReply, "x"), "the acknowledgement of NBD_OPT_GO carries data"},
      {ServerReply(7, kServerReply, U32(0)), "answered with a reply of type 2"},
      {ServerReply(7, 77, ""), "answered with a reply of type 77"},
      {Hex("0003e889045565a9 00000007 00000003 00010001"), "of 65537 bytes is too long"},
      {Hex("0003e889045565a9 00000007 80000006 ffffffff"), "of 4294967295 bytes is too long"},
      {info("x"), "ends within its type"},
      {info(Hex("0000 0000000000000200")), "NBD_INFO_EXPORT has 10 bytes and not 12"},
      {info(Hex("0000 0000000000000200 0001 00")), "NBD_INFO_EXPORT has 13 bytes"},
      {info(Hex("0000 8000000000000000 0001")), "an export of 9223372036854775808 bytes"},
      {info(Hex("0001") + std::string(4097, 'n')), "an export's name has 4097 bytes"},
      {info(Hex("0002") + std::string(4097, 'n')), "an export's description has 4097 bytes"},
      {info(Hex("0003 00000200 00001000")), "NBD_INFO_BLOCK_SIZE has 10 bytes and not 14"},
      {info(Hex("0003 00000000 00001000 02000000")), "its block sizes 0, 4096 and 33554432"},
      {info(Hex("0003 00000003 00001000 02000000")), "do not go together"},
      {info(Hex("0003 00020000 00020000 02000000")), "do not go together"},
      {info(Hex("0003 00001000 00000200 02000000")), "do not go together"},
      {info(Hex("0003 00001000 00001000 00000200")), "do not go together"},
  };
  for (const auto& [bytes, error] : cases) {
    StartSimple();
    Throw(bytes);
    ExpectError(kProtocolBroken, error);
  }
}

TEST_F(ClientHandshakeTest, EveryLieAboutContextsIsNamed) {
  const auto context = [](absl::string_view data) { return ServerReply(10, kContextReply, data); };
  const std::pair<std::string, const char*> cases[] = {
      {context(U32(1)), "has no name"},
      {context(U32(1) + std::string(4097, 'c')), "a metadata context's name has 4097 bytes"},
      {context(U32(1) + "a:b") + context(U32(1) + "a:c"), "two metadata contexts have the ID 1"},
      {ServerReply(10, kInfoReply, Hex("00ff")), "answered with a reply of type 3"},
  };
  for (const auto& [bytes, error] : cases) {
    Start({.extended_headers = false});
    Throw(ServerGreeting());
    Throw(ServerReply(8, kAckReply) + bytes);
    ExpectError(kProtocolBroken, error);
  }
}

TEST_F(ClientHandshakeTest, EveryLieInAListIsNamed) {
  const auto server = [](absl::string_view data) { return ServerReply(3, kServerReply, data); };
  const std::pair<std::string, const char*> cases[] = {
      {server("abc"), "ends within the length of its name"},
      {server(U32(4) + "abc"), "ends within its name"},
      {server(U32(0xffffffff) + "abc"), "ends within its name"},
      {server(WithLength(std::string(4097, 'n'))), "an export's name has 4097 bytes"},
      {server(WithLength("n") + std::string(4097, 'd')), "an export's description has 4097 bytes"},
      {ServerReply(3, kContextReply, U32(0) + "a:b"), "answered with a reply of type 4"},
  };
  for (const auto& [bytes, error] : cases) {
    StartSimple({.goal = ClientHandshakeOptions::Goal::kList});
    Throw(bytes);
    ExpectError(kProtocolBroken, error);
  }
  for (uint32_t option : {5u, 8u, 11u}) {
    Start({.tls = option == 5, .extended_headers = option == 11});
    Throw(ServerGreeting());
    Throw(ServerReply(option, kServerReply, WithLength("x")));
    ExpectError(kProtocolBroken, "is answered with a list");
  }
}

// A server that never comes to an end meets a bound.
TEST_F(ClientHandshakeTest, EndlessAnswersMeetABound) {
  const auto repeat = [](const std::string& bytes, int times) {
    std::string all;
    for (int i = 0; i < times; ++i) all += bytes;
    return all;
  };
  StartSimple();
  Throw(repeat(ServerReply(7, kInfoReply, Hex("00ff")), 2000));
  ExpectError(absl::StatusCode::kResourceExhausted, "more than 1024 replies to NBD_OPT_GO");

  StartSimple({.goal = ClientHandshakeOptions::Goal::kList, .max_exports = 10});
  Throw(repeat(ServerReply(3, kServerReply, WithLength("n")), 11));
  ExpectError(absl::StatusCode::kResourceExhausted, "more than 10 exports");

  StartSimple({.goal = ClientHandshakeOptions::Goal::kList, .max_bytes = 100'000});
  Throw(repeat(ServerReply(3, kServerReply, WithLength(std::string(4096, 'n'))), 100));
  ExpectError(absl::StatusCode::kResourceExhausted, "sends more than 100000 bytes");

  Start({.extended_headers = false});
  Throw(ServerGreeting());
  std::string contexts = ServerReply(8, kAckReply);
  for (uint32_t id = 0; id < 2000; ++id) contexts += ServerReply(10, kContextReply, U32(id) + "a:b");
  Throw(contexts);
  ExpectError(absl::StatusCode::kResourceExhausted, "more than 1024 metadata contexts");
}

TEST_F(ClientHandshakeTest, SaysWhatItAwaits) {
  Start();
  EXPECT_EQ(handshake_->awaited(), "its greeting");
  Give(ServerGreeting());
  Said();
  EXPECT_EQ(handshake_->awaited(), "the answer to NBD_OPT_EXTENDED_HEADERS");
  // Gone with a coroutine that waits.
  handshake_.reset();
}

}  // namespace
}  // namespace berth::nbd
