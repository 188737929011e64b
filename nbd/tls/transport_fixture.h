// Two ends of a Transport, plain or under TLS in its forms, for the tests beside this.
#ifndef BERTH_NBD_TLS_TRANSPORT_FIXTURE_H_
#define BERTH_NBD_TLS_TRANSPORT_FIXTURE_H_

#include <netinet/in.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"
#include "nbd/tls/test_authority.h"
#include "nbd/tls/tls_transport.h"

namespace berth::nbd {

inline constexpr absl::Duration kTimeout = absl::Seconds(60);
inline constexpr char kPsk[] = "alice:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n";

// The last two over TCP, where the kernel may encrypt; the others over Unix sockets.
enum class Kind { kPlain, kTls13, kTls12, kPsk13, kPsk12, kAnonymous, kTcp13, kTcp12 };

inline std::string NameOf(const testing::TestParamInfo<Kind>& info) {
  constexpr const char* kNames[] = {"Plain", "Tls13",     "Tls12", "Psk13",
                                    "Psk12", "Anonymous", "Tcp13", "Tcp12"};
  return kNames[static_cast<int>(info.param)];
}

inline std::vector<uint8_t> Bytes(size_t size) {
  std::vector<uint8_t> bytes(size);
  uint32_t state = 1;
  for (uint8_t& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<uint8_t>(state >> 24);
  }
  return bytes;
}

inline iovec Vector(std::vector<uint8_t>& bytes, size_t from, size_t size) {
  return {bytes.data() + from, size};
}

inline Task<int> SendAll(Transport& transport, std::vector<uint8_t>& bytes) {
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
inline Task<std::vector<uint8_t>> ReceiveAll(Transport& transport, size_t size, int* result) {
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
    if (kind == Kind::kAnonymous) {
      files.anonymous = true;
    } else if (kind == Kind::kPsk13 || kind == Kind::kPsk12) {
      files.psk = psk_;
    } else {
      files.certificates = folder_.path();
      files.verify_client = true;
    }
    auto credentials = Checked(TlsCredentials::ForServer(files));
    if (kind == Kind::kTls12 || kind == Kind::kPsk12 || kind == Kind::kTcp12) {
      SSL_CTX_set_max_proto_version(credentials->context(), TLS1_2_VERSION);
    }
    if (on_server_credentials_) on_server_credentials_(credentials->context());
    return credentials;
  }
  std::shared_ptr<const TlsCredentials> ClientCredentials(Kind kind) {
    ClientTlsFiles files;
    if (kind == Kind::kAnonymous) {
      files.anonymous = true;
    } else if (kind == Kind::kPsk13 || kind == Kind::kPsk12) {
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
  std::function<void(SSL_CTX*)> on_server_credentials_;  // Changes them before they are used.
  std::unique_ptr<ReactorPool> pool_;
  UniqueFd server_socket_, client_socket_;
  int server_fd_ = -1;
  int client_fd_ = -1;
  std::unique_ptr<Transport> server_, client_;
  TlsTransport* server_tls_ = nullptr;
  TlsTransport* client_tls_ = nullptr;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_TLS_TRANSPORT_FIXTURE_H_
