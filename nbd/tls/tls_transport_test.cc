// What TLS alone promises.
#include "nbd/tls/tls_transport.h"

#include <openssl/ssl.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "nbd/tls/test_authority.h"
#include "nbd/tls/transport_fixture.h"

namespace berth::nbd {
namespace {

class TcpTest : public TransportTest {};

INSTANTIATE_TEST_SUITE_P(Kinds, TcpTest, testing::Values(Kind::kTcp13, Kind::kTcp12), NameOf);

// The virtual machine has the kernel's module; elsewhere it is as it comes.
TEST_P(TcpTest, TheKernelEncryptsWhereItCan) {
  Run([this]() -> Task<void> {
    if (getenv("BERTH_VM") != nullptr) {
      EXPECT_TRUE(server_tls_->peer().kernel_encrypts) << server_tls_->peer().cipher;
      EXPECT_TRUE(client_tls_->peer().kernel_encrypts) << client_tls_->peer().cipher;
    }
    std::vector<uint8_t> bytes = Bytes(100000);
    EXPECT_EQ(co_await SendAll(*server_, bytes), 0);
    server_.reset();
    int result;
    const std::vector<uint8_t> got = co_await ReceiveAll(*client_, bytes.size() + 1, &result);
    EXPECT_EQ(result, 0) << "close_notify goes through the kernel too";
    EXPECT_TRUE(got == bytes);
  });
}

class TlsTest : public TransportTest {};

INSTANTIATE_TEST_SUITE_P(Kinds, TlsTest,
                         testing::Values(Kind::kTls13, Kind::kTls12, Kind::kPsk13, Kind::kPsk12,
                                         Kind::kAnonymous),
                         NameOf);

TEST_P(TlsTest, TheHandshakeSaysWhoIsThere) {
  Run([this]() -> Task<void> {
    const bool psk = GetParam() == Kind::kPsk13 || GetParam() == Kind::kPsk12;
    const bool anonymous = GetParam() == Kind::kAnonymous;
    const bool old = GetParam() == Kind::kTls12 || GetParam() == Kind::kPsk12 || anonymous;
    const TlsPeer& client = server_tls_->peer();
    EXPECT_EQ(client.version, old ? "TLSv1.2" : "TLSv1.3");
    EXPECT_NE(client.cipher, "");
    EXPECT_EQ(client.psk_user, psk ? "alice" : "");
    EXPECT_EQ(client.distinguished_name, psk || anonymous ? "" : "CN=agent,O=Example");
    const TlsPeer& server = client_tls_->peer();
    EXPECT_EQ(server.psk_user, psk ? "alice" : "");
    EXPECT_EQ(server.distinguished_name, psk || anonymous ? "" : "CN=localhost,O=Example");
    co_return;
  });
}

// "truncation": the stream ends, and nobody said that it would.
TEST_P(TlsTest, AnEndWithoutCloseNotifyIsAnError) {
  Run([this]() -> Task<void> {
    std::vector<uint8_t> bytes = Bytes(1000);
    EXPECT_EQ(co_await SendAll(*client_, bytes), 0);
    client_->Shutdown();
    client_.reset();
    int result;
    const std::vector<uint8_t> got = co_await ReceiveAll(*server_, bytes.size() + 1, &result);
    EXPECT_TRUE(got == bytes);
    EXPECT_EQ(result, -ECONNABORTED);
  });
}

// The other end says good-bye, and still hears what comes.
TEST_P(TlsTest, OneWayMayEndBeforeTheOther) {
  Run([this]() -> Task<void> {
    const UniqueFd kept(dup(client_fd_));
    client_.reset();
    int result;
    co_await ReceiveAll(*server_, 1, &result);
    EXPECT_EQ(result, 0);
    std::vector<uint8_t> bytes = Bytes(50000);
    EXPECT_EQ(co_await SendAll(*server_, bytes), 0);
    std::vector<uint8_t> records(bytes.size());
    EXPECT_EQ(recv(kept.get(), records.data(), records.size(), MSG_WAITALL),
              static_cast<ssize_t>(records.size()));
  });
}

TEST_P(TlsTest, ARecordThatWasTamperedWithIsAnError) {
  Run([this]() -> Task<void> {
    const uint8_t record[] = {23, 3,  3,  0,  32, 1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14,
                              15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32};
    EXPECT_EQ(send(client_fd_, record, sizeof(record), MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(record)));
    int result;
    co_await ReceiveAll(*server_, 1, &result);
    EXPECT_EQ(result, -EPROTO);
    EXPECT_NE(server_tls_->failure(), "");
    std::vector<uint8_t> bytes = Bytes(10);
    EXPECT_LT(co_await SendAll(*server_, bytes), 0);
  });
}

TEST_P(TlsTest, BytesInClearAfterTheHandshakeAreAnError) {
  Run([this]() -> Task<void> {
    const std::string text = "IHAVEOPT in clear, as somebody in the middle would put it in";
    EXPECT_EQ(send(client_fd_, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
    int result;
    co_await ReceiveAll(*server_, 1, &result);
    EXPECT_EQ(result, -EPROTO);
  });
}

// What the library says while it works on handshakes, and on which threads.
struct HandshakeThreadsSeen {
  const Reactor* reactor;
  std::atomic<int> on_reactor{0}, elsewhere{0};

  static void Note(int, int, int type, const void*, size_t, SSL*, void* self) {
    if (type != SSL3_RT_HANDSHAKE) return;
    auto* seen = static_cast<HandshakeThreadsSeen*>(self);
    ++(seen->reactor->IsCurrent() ? seen->on_reactor : seen->elsewhere);
  }
};

// A signature would keep the reactor's other connections waiting.
TEST_P(TlsTest, HandshakesAreWorkedOnElsewhere) {
  HandshakeThreadsSeen seen{&reactor()};
  on_server_credentials_ = [&seen](SSL_CTX* context) {
    SSL_CTX_set_msg_callback(context, &HandshakeThreadsSeen::Note);
    SSL_CTX_set_msg_callback_arg(context, &seen);
  };
  Run([]() -> Task<void> { co_return; });
  EXPECT_EQ(seen.on_reactor, 0);
  EXPECT_GE(seen.elsewhere, 4) << "hellos and good-byes of a handshake";
}

TEST_P(TlsTest, TheHandshakeHasADeadline) {
  MakeSockets();
  RunOn(reactor(), [this]() -> Task<void> {
    const auto server = MakeTlsTransport(reactor(), std::move(server_socket_), ServerCredentials(GetParam()));
    const absl::Status status = co_await server->Handshake(absl::Milliseconds(1));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  });
}

// Attempts at renegotiation: refused, and what a client makes the server say does not pile up.
TEST(TlsRenegotiationTest, IsRefusedAndDoesNotPileUp) {
  TestAuthority authority;
  TestTlsFolder folder(authority);
  auto pool = ReactorPool::Create(1);
  ASSERT_TRUE(pool.ok());
  Reactor& reactor = (*pool)->at(0);
  const auto credentials = TlsCredentials::ForServer({.certificates = folder.path(), .psk = ""});
  ASSERT_TRUE(credentials.ok());
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd client_socket(pair[1]);

  // The server receives until something is wrong.
  std::promise<int> ended;
  reactor.Post([&] {
    Spawn([](Reactor& r, int fd, std::shared_ptr<const TlsCredentials> c,
             std::promise<int>* end) -> Task<void> {
      int result;
      {
        const auto server = MakeTlsTransport(r, UniqueFd(fd), std::move(c));
        const absl::Status status = co_await server->Handshake(kTimeout);
        EXPECT_TRUE(status.ok()) << status;
        do {
          co_await ReceiveAll(*server, 1, &result);
        } while (result > 0);
      }
      end->set_value(result);
    }(reactor, pair[0], *credentials, &ended));
  });

  const SslContext context(SSL_CTX_new(TLS_client_method()));
  SSL_CTX_set_max_proto_version(context.get(), TLS1_2_VERSION);
  const SslConnection tls(SSL_new(context.get()));
  SSL_set_fd(tls.get(), client_socket.get());
  ASSERT_EQ(SSL_connect(tls.get()), 1);
  for (int i = 0; i < 3; ++i) {
    SSL_renegotiate(tls.get());
    SSL_do_handshake(tls.get());
    EXPECT_EQ(SSL_get_version(tls.get()), std::string("TLSv1.2"));
  }
  shutdown(client_socket.get(), SHUT_RDWR);
  EXPECT_LT(ended.get_future().get(), 0);
}

}  // namespace
}  // namespace berth::nbd
