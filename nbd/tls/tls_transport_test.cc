// What every Transport promises, over plain sockets and over TLS in its forms; and what TLS alone promises.
#include "nbd/tls/tls_transport.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <future>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"
#include "nbd/tls/test_authority.h"

namespace berth::nbd {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(60);
constexpr char kPsk[] = "alice:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n";

// The last two over TCP, where the kernel may encrypt; the others over Unix sockets.
enum class Kind { kPlain, kTls13, kTls12, kPsk13, kPsk12, kTcp13, kTcp12 };

std::string NameOf(const testing::TestParamInfo<Kind>& info) {
  constexpr const char* kNames[] = {"Plain", "Tls13", "Tls12", "Psk13", "Psk12", "Tcp13", "Tcp12"};
  return kNames[static_cast<int>(info.param)];
}

std::vector<uint8_t> Bytes(size_t size) {
  std::vector<uint8_t> bytes(size);
  uint32_t state = 1;
  for (uint8_t& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<uint8_t>(state >> 24);
  }
  return bytes;
}

iovec Vector(std::vector<uint8_t>& bytes, size_t from, size_t size) { return {bytes.data() + from, size}; }

Task<int> SendAll(Transport& transport, std::vector<uint8_t>& bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    const iovec vector = Vector(bytes, sent, bytes.size() - sent);
    const int result = co_await transport.Send(absl::MakeConstSpan(&vector, 1));
    if (result <= 0) co_return result;
    sent += static_cast<size_t>(result);
  }
  co_return 0;
}

// `size` bytes, or fewer where the stream ends or breaks.
Task<std::vector<uint8_t>> ReceiveAll(Transport& transport, size_t size, int* result) {
  std::vector<uint8_t> bytes(size);
  size_t received = 0;
  *result = 1;
  while (received<size&& * result> 0) {
    const iovec vector = Vector(bytes, received, size - received);
    *result = co_await transport.Receive(absl::MakeConstSpan(&vector, 1));
    if (*result > 0) received += static_cast<size_t>(*result);
  }
  bytes.resize(received);
  co_return bytes;
}

class TransportTest : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    psk_ = folder_.Write("keys.psk", kPsk);
  }

  Reactor& reactor() { return pool_->at(0); }

  void MakeSockets(int buffer = 4 << 20) {
    int pair[2];
    if (GetParam() == Kind::kTcp13 || GetParam() == Kind::kTcp12) {
      ASSERT_NO_FATAL_FAILURE(MakeTcpPair(pair));
    } else {
      ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    }
    for (const int socket : pair) setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
    server_socket_ = UniqueFd(pair[0]);
    client_socket_ = UniqueFd(pair[1]);
    server_fd_ = pair[0];
    client_fd_ = pair[1];
  }

  static void MakeTcpPair(int pair[2]) {
    const UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    ASSERT_EQ(bind(listener.get(), generic, size), 0);
    ASSERT_EQ(listen(listener.get(), 1), 0);
    ASSERT_EQ(getsockname(listener.get(), generic, &size), 0);
    pair[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(connect(pair[1], generic, size), 0);
    pair[0] = accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC);
    ASSERT_GE(pair[0], 0);
  }

  static std::shared_ptr<const TlsCredentials> Checked(
      absl::StatusOr<std::shared_ptr<const TlsCredentials>> credentials) {
    EXPECT_TRUE(credentials.ok()) << credentials.status();
    return *std::move(credentials);
  }
  std::shared_ptr<const TlsCredentials> ServerCredentials(Kind kind) {
    ServerTlsFiles files;
    if (kind == Kind::kPsk13 || kind == Kind::kPsk12) {
      files.psk = psk_;
    } else {
      files.certificates = folder_.path();
      files.verify_client = true;
    }
    auto credentials = Checked(TlsCredentials::ForServer(files));
    if (kind == Kind::kTls12 || kind == Kind::kPsk12 || kind == Kind::kTcp12) {
      SSL_CTX_set_max_proto_version(credentials->context(), TLS1_2_VERSION);
    }
    return credentials;
  }
  std::shared_ptr<const TlsCredentials> ClientCredentials(Kind kind) {
    ClientTlsFiles files;
    if (kind == Kind::kPsk13 || kind == Kind::kPsk12) {
      files.psk = psk_;
      files.psk_user = "alice";
    } else {
      files.certificates = folder_.path();
    }
    return Checked(TlsCredentials::ForClient(files));
  }

  // Two ends that are ready. On the reactor.
  Task<absl::Status> Connect() {
    if (GetParam() == Kind::kPlain) {
      server_ = MakePlainTransport(reactor(), std::move(server_socket_));
      client_ = MakePlainTransport(reactor(), std::move(client_socket_));
      co_return absl::OkStatus();
    }
    auto server = MakeTlsTransport(reactor(), std::move(server_socket_), ServerCredentials(GetParam()));
    auto client =
        MakeTlsTransport(reactor(), std::move(client_socket_), ClientCredentials(GetParam()), "localhost");
    server_tls_ = server.get();
    client_tls_ = client.get();
    server_ = std::move(server);
    client_ = std::move(client);
    absl::Status server_status;
    Gate gate(reactor());
    Spawn([](TransportTest* self, absl::Status* status, Gate::Holder) -> Task<void> {
      *status = co_await self->server_tls_->Handshake(kTimeout);
    }(this, &server_status, gate.Enter()));
    absl::Status client_status = co_await client_tls_->Handshake(kTimeout);
    co_await gate.Close();
    if (!client_status.ok()) co_return client_status;
    co_return server_status;
  }

  // Runs a coroutine of the test with both ends connected, and ends them.
  template <typename Body>
  void Run(Body body) {
    if (server_fd_ < 0) MakeSockets();
    RunOn(reactor(), [&]() -> Task<void> {
      const absl::Status status = co_await Connect();
      EXPECT_TRUE(status.ok()) << status;
      if (status.ok()) co_await body();
      server_.reset();
      client_.reset();
    });
  }

  TestAuthority authority_;
  TestTlsFolder folder_{authority_};
  std::string psk_;
  std::unique_ptr<ReactorPool> pool_;
  UniqueFd server_socket_, client_socket_;
  int server_fd_ = -1;
  int client_fd_ = -1;
  std::unique_ptr<Transport> server_, client_;
  TlsTransport* server_tls_ = nullptr;
  TlsTransport* client_tls_ = nullptr;
};

TEST_P(TransportTest, ManyBytesBothWaysAtOnce) {
  MakeSockets(100 << 10);  // Small: sends wait.
  Run([this]() -> Task<void> {
    std::vector<uint8_t> up = Bytes(3 << 20), down = Bytes((3 << 20) + 12345);
    int results[2] = {-1, -1};
    Gate gate(reactor());
    Spawn([](Transport& t, std::vector<uint8_t>& b, int* r, Gate::Holder) -> Task<void> {
      *r = co_await SendAll(t, b);
    }(*client_, up, &results[0], gate.Enter()));
    Spawn([](Transport& t, std::vector<uint8_t>& b, int* r, Gate::Holder) -> Task<void> {
      *r = co_await SendAll(t, b);
    }(*server_, down, &results[1], gate.Enter()));
    std::vector<uint8_t> got_up, got_down;
    Spawn([](Transport& t, std::vector<uint8_t>* b, size_t n, Gate::Holder) -> Task<void> {
      int result;
      *b = co_await ReceiveAll(t, n, &result);
    }(*server_, &got_up, up.size(), gate.Enter()));
    Spawn([](Transport& t, std::vector<uint8_t>* b, size_t n, Gate::Holder) -> Task<void> {
      int result;
      *b = co_await ReceiveAll(t, n, &result);
    }(*client_, &got_down, down.size(), gate.Enter()));
    co_await gate.Close();
    EXPECT_EQ(results[0], 0);
    EXPECT_EQ(results[1], 0);
    EXPECT_TRUE(got_up == up);
    EXPECT_TRUE(got_down == down);
  });
}

TEST_P(TransportTest, GathersAndScatters) {
  Run([this]() -> Task<void> {
    std::vector<uint8_t> bytes = Bytes(100000);
    std::vector<iovec> pieces;
    size_t at = 0;
    for (const size_t size : {1, 15, 28, 16384, 16385, 3, 32768, 7, 20000}) {
      pieces.push_back(Vector(bytes, at, size));
      at += size;
    }
    bytes.resize(at);
    size_t sent = 0;
    while (!pieces.empty()) {
      const int result = co_await client_->Send(pieces);
      EXPECT_GT(result, 0);
      if (result <= 0) co_return;
      sent += static_cast<size_t>(result);
      size_t left = static_cast<size_t>(result);
      while (!pieces.empty() && left >= pieces[0].iov_len) {
        left -= pieces[0].iov_len;
        pieces.erase(pieces.begin());
      }
      if (!pieces.empty())
        pieces[0] = {static_cast<uint8_t*>(pieces[0].iov_base) + left, pieces[0].iov_len - left};
    }
    EXPECT_EQ(sent, bytes.size());
    std::vector<uint8_t> got(bytes.size());
    size_t received = 0;
    while (received < got.size()) {
      const size_t left = got.size() - received;
      const size_t first = std::min<size_t>(left, 100);
      const size_t second = std::min<size_t>(left - first, 3);
      const iovec vectors[] = {Vector(got, received, first), Vector(got, received + first, second),
                               Vector(got, received + first + second, left - first - second)};
      const int result = co_await server_->Receive(vectors);
      EXPECT_GT(result, 0);
      if (result <= 0) co_return;
      received += static_cast<size_t>(result);
    }
    EXPECT_TRUE(got == bytes);
  });
}

TEST_P(TransportTest, TriesWithoutWaiting) {
  MakeSockets(64 << 10);
  Run([this]() -> Task<void> {
    std::vector<uint8_t> space(4096);
    iovec vector = Vector(space, 0, space.size());
    EXPECT_EQ(server_->TryReceive(absl::MakeConstSpan(&vector, 1)), -EAGAIN);
    std::vector<uint8_t> bytes = Bytes(8 << 20);
    size_t sent = 0;
    int result = 1;
    while (result > 0) {
      vector = Vector(bytes, sent, std::min<size_t>(100000, bytes.size() - sent));
      result = client_->TrySend(absl::MakeConstSpan(&vector, 1));
      if (result > 0) sent += static_cast<size_t>(result);
    }
    EXPECT_EQ(result, -EAGAIN);
    // The rest goes on from there, whichever way.
    bytes.resize(sent + 300000);
    std::vector<uint8_t> rest(bytes.begin() + static_cast<ptrdiff_t>(sent), bytes.end());
    Gate gate(reactor());
    int rest_result = -1;
    Spawn([](Transport& t, std::vector<uint8_t>& b, int* r, Gate::Holder) -> Task<void> {
      *r = co_await SendAll(t, b);
    }(*client_, rest, &rest_result, gate.Enter()));
    std::vector<uint8_t> got;
    while (got.size() < bytes.size()) {
      vector = Vector(space, 0, space.size());
      int received = server_->TryReceive(absl::MakeConstSpan(&vector, 1));
      if (received == -EAGAIN) received = co_await server_->Receive(absl::MakeConstSpan(&vector, 1));
      EXPECT_GT(received, 0);
      if (received <= 0) break;
      got.insert(got.end(), space.begin(), space.begin() + received);
    }
    co_await gate.Close();
    EXPECT_EQ(rest_result, 0);
    EXPECT_TRUE(got == bytes);
  });
}

TEST_P(TransportTest, ACancelledReceiveLosesNothing) {
  Run([this]() -> Task<void> {
    std::vector<uint8_t> bytes = Bytes(200000);
    Gate gate(reactor());
    int result = -1;
    Spawn([](Transport& t, std::vector<uint8_t>& b, int* r, Reactor& reactor, Gate::Holder) -> Task<void> {
      for (size_t at = 0; at < b.size();) {
        const iovec vector = Vector(b, at, std::min<size_t>(1777, b.size() - at));
        *r = co_await t.Send(absl::MakeConstSpan(&vector, 1));
        if (*r <= 0) co_return;
        at += static_cast<size_t>(*r);
        co_await reactor.Yield();
      }
    }(*client_, bytes, &result, reactor(), gate.Enter()));
    std::vector<uint8_t> got(bytes.size());
    size_t received = 0;
    int cancelled = 0;
    while (received < got.size()) {
      // Cancelled in a later turn, beside bytes that come or not.
      const Reactor::Timer cancel(reactor(), absl::ZeroDuration(), [this] { server_->CancelReceive(); });
      const iovec vector = Vector(got, received, got.size() - received);
      const int count = co_await server_->Receive(absl::MakeConstSpan(&vector, 1));
      if (count == -ECANCELED) {
        ++cancelled;
        continue;
      }
      EXPECT_GT(count, 0);
      if (count <= 0) break;
      received += static_cast<size_t>(count);
    }
    co_await gate.Close();
    EXPECT_TRUE(got == bytes);
    // Nothing comes any more.
    const Reactor::Timer cancel(reactor(), absl::ZeroDuration(), [this] { server_->CancelReceive(); });
    uint8_t byte;
    const iovec vector = {&byte, 1};
    const int last = co_await server_->Receive(absl::MakeConstSpan(&vector, 1));
    EXPECT_EQ(last, -ECANCELED);
    EXPECT_GE(cancelled, 0);
  });
}

TEST_P(TransportTest, TheEndComesAfterTheLastByte) {
  Run([this]() -> Task<void> {
    std::vector<uint8_t> bytes = Bytes(70000);
    EXPECT_EQ(co_await SendAll(*client_, bytes), 0);
    client_.reset();
    int result;
    const std::vector<uint8_t> got = co_await ReceiveAll(*server_, bytes.size() + 1, &result);
    EXPECT_EQ(result, 0);
    EXPECT_TRUE(got == bytes);
    int again;
    const std::vector<uint8_t> more = co_await ReceiveAll(*server_, 1, &again);
    EXPECT_EQ(again, 0) << "stays at the end";
  });
}

TEST_P(TransportTest, ShutdownEndsWhatIsUnderWay) {
  MakeSockets(64 << 10);
  Run([this]() -> Task<void> {
    Gate gate(reactor());
    int received = 1, sent = 0;
    Spawn([](Transport& t, int* r, Gate::Holder) -> Task<void> { co_await ReceiveAll(t, 1, r); }(
                                                     *server_, &received, gate.Enter()));
    std::vector<uint8_t> bytes = Bytes(8 << 20);
    Spawn([](Transport& t, std::vector<uint8_t>& b, int* r, Gate::Holder) -> Task<void> {
      *r = co_await SendAll(t, b);
    }(*server_, bytes, &sent, gate.Enter()));
    co_await reactor().Yield();
    server_->Shutdown();
    co_await gate.Close();
    EXPECT_LE(received, 0);
    EXPECT_LT(sent, 0);
    const iovec vector = Vector(bytes, 0, 1);
    EXPECT_LT(server_->TrySend(absl::MakeConstSpan(&vector, 1)), 0);
  });
}

INSTANTIATE_TEST_SUITE_P(Kinds, TransportTest,
                         testing::Values(Kind::kPlain, Kind::kTls13, Kind::kTls12, Kind::kPsk13, Kind::kPsk12,
                                         Kind::kTcp13, Kind::kTcp12),
                         NameOf);

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
                         testing::Values(Kind::kTls13, Kind::kTls12, Kind::kPsk13, Kind::kPsk12), NameOf);

TEST_P(TlsTest, TheHandshakeSaysWhoIsThere) {
  Run([this]() -> Task<void> {
    const bool psk = GetParam() == Kind::kPsk13 || GetParam() == Kind::kPsk12;
    const bool old = GetParam() == Kind::kTls12 || GetParam() == Kind::kPsk12;
    const TlsPeer& client = server_tls_->peer();
    EXPECT_EQ(client.version, old ? "TLSv1.2" : "TLSv1.3");
    EXPECT_NE(client.cipher, "");
    EXPECT_EQ(client.psk_user, psk ? "alice" : "");
    EXPECT_EQ(client.distinguished_name, psk ? "" : "CN=agent,O=Example");
    const TlsPeer& server = client_tls_->peer();
    EXPECT_EQ(server.psk_user, psk ? "alice" : "");
    EXPECT_EQ(server.distinguished_name, psk ? "" : "CN=localhost,O=Example");
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

TEST_P(TlsTest, TheHandshakeHasADeadline) {
  MakeSockets();
  RunOn(reactor(), [this]() -> Task<void> {
    const auto server = MakeTlsTransport(reactor(), std::move(server_socket_), ServerCredentials(GetParam()));
    const absl::Status status = co_await server->Handshake(absl::Milliseconds(1));
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  });
}

// Handshakes that must fail: what both ends say.
class RefusalTest : public TransportTest {
 protected:
  struct Outcome {
    absl::Status server;
    absl::Status client;  // Of the handshake, or else of the first byte after it.
  };
  Outcome Try(std::shared_ptr<const TlsCredentials> server, std::shared_ptr<const TlsCredentials> client,
              const std::string& name = "localhost") {
    MakeSockets();
    Outcome outcome;
    RunOn(reactor(), [&]() -> Task<void> {
      auto server_end = MakeTlsTransport(reactor(), std::move(server_socket_), std::move(server));
      auto client_end = MakeTlsTransport(reactor(), std::move(client_socket_), std::move(client), name);
      Gate gate(reactor());
      Spawn([](std::unique_ptr<TlsTransport> end, absl::Status* status, Gate::Holder) -> Task<void> {
        *status = co_await end->Handshake(kTimeout);
      }(std::move(server_end), &outcome.server, gate.Enter()));
      outcome.client = co_await client_end->Handshake(kTimeout);
      if (outcome.client.ok()) {
        int result;
        co_await ReceiveAll(*client_end, 1, &result);
        if (result == -EPROTO) outcome.client = absl::UnauthenticatedError(client_end->failure());
      }
      client_end.reset();
      co_await gate.Close();
    });
    return outcome;
  }
  std::shared_ptr<const TlsCredentials> ClientFrom(const TestTlsFolder& folder) {
    ClientTlsFiles files;
    files.certificates = folder.path();
    return Checked(TlsCredentials::ForClient(files));
  }
  static void ExpectReason(const absl::Status& status, absl::string_view reason) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
    EXPECT_NE(status.message().find(reason), absl::string_view::npos) << status;
  }
};

INSTANTIATE_TEST_SUITE_P(Kinds, RefusalTest, testing::Values(Kind::kTls13, Kind::kTls12), NameOf);

TEST_P(RefusalTest, AClientOfAnotherAuthority) {
  TestAuthority other("Others");
  TestTlsFolder folder(other);
  folder.Write("ca-cert.pem", authority_.certificate());
  const Outcome outcome = Try(ServerCredentials(GetParam()), ClientFrom(folder));
  ExpectReason(outcome.server, "the client's certificate: unable to get local issuer certificate");
  ExpectReason(outcome.client, "unknown ca");
}

TEST_P(RefusalTest, AClientWithoutACertificate) {
  TestTlsFolder folder(authority_);
  folder.Remove("client-cert.pem");
  folder.Remove("client-key.pem");
  const Outcome outcome = Try(ServerCredentials(GetParam()), ClientFrom(folder));
  ExpectReason(outcome.server, "peer did not return a certificate");
  EXPECT_FALSE(outcome.client.ok());
}

TEST_P(RefusalTest, AServerOfAnotherAuthority) {
  TestAuthority other("Others");
  TestTlsFolder folder(authority_);
  folder.Write("ca-cert.pem", other.certificate());
  const Outcome outcome = Try(ServerCredentials(GetParam()), ClientFrom(folder));
  ExpectReason(outcome.client, "the server's certificate: unable to get local issuer certificate");
  ExpectReason(outcome.server, "unknown ca");
}

TEST_P(RefusalTest, AServerOfAnotherName) {
  ExpectReason(Try(ServerCredentials(GetParam()), ClientCredentials(GetParam()), "elsewhere.example").client,
               "the server's certificate: hostname mismatch");
  ExpectReason(Try(ServerCredentials(GetParam()), ClientCredentials(GetParam()), "192.0.2.1").client,
               "the server's certificate: IP address mismatch");
  EXPECT_TRUE(Try(ServerCredentials(GetParam()), ClientCredentials(GetParam()), "127.0.0.1").client.ok());
}

TEST_P(RefusalTest, AClientThatKnowsNoNameDoesNotConnect) {
  EXPECT_EQ(Try(ServerCredentials(GetParam()), ClientCredentials(GetParam()), "").client.code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(RefusalTest, ARevokedClient) {
  TestTlsFolder folder(authority_);
  const TestAuthority::Issued issued = authority_.Issue();
  folder.WriteClient(issued);
  folder_.Write("ca-crl.pem", authority_.RevocationList({issued.serial + 1}));
  EXPECT_TRUE(Try(ServerCredentials(GetParam()), ClientFrom(folder)).server.ok());
  folder_.Write("ca-crl.pem", authority_.RevocationList({issued.serial}));
  const Outcome outcome = Try(ServerCredentials(GetParam()), ClientFrom(folder));
  ExpectReason(outcome.server, "the client's certificate: certificate revoked");
  ExpectReason(outcome.client, "revoked");
}

// Its own library would not load it.
TEST_P(RefusalTest, AnExpiredClient) {
  TestTlsFolder folder(authority_);
  const auto client = ClientFrom(folder);
  TestAuthority::Wanted expired;
  expired.ends = -absl::Hours(1);
  const TestAuthority::Issued issued = authority_.Issue(expired);
  const OpensslBio certificate(BIO_new_mem_buf(issued.certificate.data(), -1));
  const OpensslBio key(BIO_new_mem_buf(issued.key.data(), -1));
  const Certificate own(PEM_read_bio_X509(certificate.get(), nullptr, nullptr, nullptr));
  const PrivateKey own_key(PEM_read_bio_PrivateKey(key.get(), nullptr, nullptr, nullptr));
  ASSERT_EQ(SSL_CTX_use_cert_and_key(client->context(), own.get(), own_key.get(), nullptr, 1), 1);
  const Outcome outcome = Try(ServerCredentials(GetParam()), client);
  ExpectReason(outcome.server, "the client's certificate: certificate has expired");
  ExpectReason(outcome.client, "expired");
}

TEST_P(RefusalTest, OldVersionsOfTls) {
  const auto client = ClientCredentials(GetParam());
  SSL_CTX_set_min_proto_version(client->context(), TLS1_VERSION);
  SSL_CTX_set_max_proto_version(client->context(), TLS1_1_VERSION);
  SSL_CTX_set_cipher_list(client->context(), "ALL:@SECLEVEL=0");
  EXPECT_EQ(Try(ServerCredentials(GetParam()), client).server.code(), absl::StatusCode::kUnauthenticated);
}

class PskRefusalTest : public RefusalTest {
 protected:
  std::shared_ptr<const TlsCredentials> ClientWith(const std::string& line) {
    ClientTlsFiles files;
    files.psk = folder_.Write("client.psk", line);
    files.psk_user = line.substr(0, line.find(':'));
    return Checked(TlsCredentials::ForClient(files));
  }
};

INSTANTIATE_TEST_SUITE_P(Kinds, PskRefusalTest, testing::Values(Kind::kPsk13, Kind::kPsk12), NameOf);

TEST_P(PskRefusalTest, AnUnknownUser) {
  const Outcome outcome =
      Try(ServerCredentials(GetParam()), ClientWith("mallory:00112233445566778899aabbccddeeff\n"));
  EXPECT_EQ(outcome.server.code(), absl::StatusCode::kUnauthenticated) << outcome.server;
  EXPECT_EQ(outcome.client.code(), absl::StatusCode::kUnauthenticated) << outcome.client;
}

TEST_P(PskRefusalTest, AnotherKey) {
  const Outcome outcome =
      Try(ServerCredentials(GetParam()), ClientWith("alice:ff112233445566778899aabbccddeeff\n"));
  EXPECT_EQ(outcome.server.code(), absl::StatusCode::kUnauthenticated) << outcome.server;
  EXPECT_EQ(outcome.client.code(), absl::StatusCode::kUnauthenticated) << outcome.client;
}

// A client with a key believes no certificate in its place.
TEST_P(PskRefusalTest, AServerWithCertificatesAlone) {
  const Outcome outcome =
      Try(ServerCredentials(Kind::kTls13), ClientWith("alice:00112233445566778899aabbccddeeff\n"));
  EXPECT_EQ(outcome.client.code(), absl::StatusCode::kUnauthenticated) << outcome.client;
  EXPECT_EQ(outcome.server.code(), absl::StatusCode::kUnauthenticated) << outcome.server;
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
