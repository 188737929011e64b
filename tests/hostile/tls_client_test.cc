// Clients that misuse TLS: bytes in the clear behind STARTTLS, garbage, half a handshake, a flood; and what a
// server that stops says under TLS. Each time others are served.
#include <openssl/ssl.h>

#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "image/io/mutex.h"
#include "image/null/null_device.h"
#include "nbd/tls/credentials.h"
#include "nbd/tls/test_authority.h"
#include "tests/fakes/faulty_device.h"
#include "tests/fixture/test_server.h"
#include "tests/hostile/byte_client.h"

namespace berth::testing {
namespace {

constexpr uint32_t kOptStartTls = 5;

// A copy that shares nothing, for ThreadSanitizer, which cannot see into Debian's libabsl.
absl::Status Unshared(const absl::Status& status) { return absl::Status(status.code(), status.message()); }

class Observer final : public nbd::ClientObserver {
 public:
  absl::Status Connecting(const nbd::Client& client) override {
    MutexLock lock(&mutex_);
    peers_.push_back(client.peer);
    return absl::OkStatus();
  }
  void Disconnected(const nbd::Client&, const absl::Status& reason) override {
    MutexLock lock(&mutex_);
    ends_.push_back(Unshared(reason));
    changed_.SignalAll();
  }
  void Rejected(absl::string_view, const absl::Status& reason) override {
    MutexLock lock(&mutex_);
    rejections_.push_back(Unshared(reason));
    changed_.SignalAll();
  }
  absl::Status WaitForRejection() { return WaitFor(rejections_); }
  absl::Status WaitForEnd() { return WaitFor(ends_); }
  std::vector<std::string> peers() const {
    MutexLock lock(&mutex_);
    return peers_;
  }

 private:
  absl::Status WaitFor(std::deque<absl::Status>& reasons) {
    MutexLock lock(&mutex_);
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    while (reasons.empty() && absl::Now() < deadline) changed_.WaitUntil(&mutex_, deadline);
    if (reasons.empty()) return absl::UnknownError("nothing happened");
    absl::Status first = reasons.front();
    reasons.pop_front();
    return first;
  }

  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<std::string> peers_;
  std::deque<absl::Status> rejections_, ends_;
};

// A client that speaks TLS in earnest, on the socket of a ByteClient.
class TlsByteClient {
 public:
  TlsByteClient(ByteClient socket, const nbd::TlsCredentials& credentials)
      : socket_(std::move(socket)), tls_(SSL_new(credentials.context())) {
    SSL_set_fd(tls_.get(), socket_.fd());
  }

  bool Start() {
    return socket_.Greet() && socket_.Send(Opt(kOptStartTls)) && socket_.Receive(20).size() == 20 &&
           SSL_connect(tls_.get()) == 1;
  }
  bool Send(const std::string& bytes) {
    return SSL_write(tls_.get(), bytes.data(), static_cast<int>(bytes.size())) ==
           static_cast<int>(bytes.size());
  }
  std::string Receive(size_t size) {
    std::string bytes(size, '\0');
    size_t received = 0;
    while (received < size) {
      const int count = SSL_read(tls_.get(), bytes.data() + received, static_cast<int>(size - received));
      if (count <= 0) break;
      received += static_cast<size_t>(count);
    }
    bytes.resize(received);
    return bytes;
  }
  bool Enter(const std::string& name = "disk") {
    return Start() && Send(Go(name)) && Receive(20 + 12 + 20).size() == 52;
  }
  // Whether the server ended the stream as TLS wants it.
  bool EndsInOrder() {
    char byte;
    const int count = SSL_read(tls_.get(), &byte, 1);
    return count == 0 && SSL_get_error(tls_.get(), count) == SSL_ERROR_ZERO_RETURN;
  }
  ByteClient& socket() { return socket_; }
  SSL* tls() { return tls_.get(); }

 private:
  ByteClient socket_;
  nbd::SslConnection tls_;
};

class TlsClientTest : public ::testing::Test {
 protected:
  void Start(TestServerOptions options = {}) {
    auto credentials =
        nbd::TlsCredentials::ForServer({.certificates = folder_.path(), .psk = "", .verify_client = true});
    ASSERT_TRUE(credentials.ok()) << credentials.status();
    if (options.server.handshake.tls == nbd::TlsMode::kOff)
      options.server.handshake.tls = nbd::TlsMode::kAllow;
    options.server.tls_credentials = [made = *credentials] { return made; };
    if (options.device == nullptr) options.device = std::make_shared<NullDevice>(uint64_t{1} << 30);
    options.client_observer = observer_;
    // One, so that whoever stalls it stalls everybody.
    options.reactors = 1;
    auto server = TestServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    nbd::ClientTlsFiles files;
    files.certificates = folder_.path();
    auto client = nbd::TlsCredentials::ForClient(files);
    ASSERT_TRUE(client.ok()) << client.status();
    client_credentials_ = *client;
  }
  ByteClient Connect() { return ByteClient(server_->socket_path()); }
  TlsByteClient ConnectTls() { return TlsByteClient(Connect(), *client_credentials_); }
  void ExpectOthersAreServed() {
    ByteClient plain = Connect();
    EXPECT_TRUE(plain.Enter());
    EXPECT_TRUE(plain.Reads());
    TlsByteClient under_tls = ConnectTls();
    EXPECT_TRUE(under_tls.Enter());
    EXPECT_TRUE(under_tls.Send(Request(0, 0, 4096)));
    EXPECT_EQ(under_tls.Receive(16 + 4096).size(), 16u + 4096);
  }

  nbd::TestAuthority authority_;
  nbd::TestTlsFolder folder_{authority_};
  const std::shared_ptr<Observer> observer_ = std::make_shared<Observer>();
  std::shared_ptr<const nbd::TlsCredentials> client_credentials_;
  std::unique_ptr<TestServer> server_;
};

// What somebody in the middle would do: options in the clear behind STARTTLS, to be taken for the client's
// own.
TEST_F(TlsClientTest, BytesInClearBehindStartTlsAreNeverTakenAsEncrypted) {
  Start();
  for (const std::string& injected :
       {Go("disk"), Opt(kOptList), std::string("x"), std::string(100000, 'x')}) {
    ByteClient client = Connect();
    ASSERT_TRUE(client.Greet());
    // In one send, so that both are in the socket when STARTTLS is read.
    ASSERT_TRUE(client.Send(Opt(kOptStartTls) + injected));
    EXPECT_EQ(client.Receive(20), U64(0x3e889045565a9) + U32(kOptStartTls) + U32(1) + U32(0));
    if (injected.size() == 1) client.Close();  // Half a record, and then nothing.
    if (injected.size() > 1) {
      EXPECT_TRUE(client.HangsUp());
      EXPECT_EQ(observer_->WaitForRejection().code(), absl::StatusCode::kUnauthenticated);
    } else {
      EXPECT_EQ(observer_->WaitForRejection().code(), absl::StatusCode::kUnavailable);
    }
  }
  EXPECT_TRUE(observer_->peers().empty()) << "an export was given to somebody in the clear";
  ExpectOthersAreServed();
}

TEST_F(TlsClientTest, HalfAHandshakeEndsAtTheDeadline) {
  TestServerOptions options;
  options.server.handshake_timeout = absl::Milliseconds(300);
  Start(options);
  // Nothing; the head of a record; a record that is a beginning of a ClientHello.
  for (const std::string& bytes : {std::string(), std::string("\x16\x03\x01\x02", 4),
                                   std::string("\x16\x03\x01\x00\x06\x01\x00\x02\x00\x03\x03", 11)}) {
    ByteClient client = Connect();
    ASSERT_TRUE(client.Greet());
    ASSERT_TRUE(client.Send(Opt(kOptStartTls) + bytes));
    EXPECT_TRUE(client.HangsUp());
    EXPECT_EQ(observer_->WaitForRejection().code(), absl::StatusCode::kDeadlineExceeded);
  }
}

TEST_F(TlsClientTest, GarbageUnderTlsEndsTheConnection) {
  Start();
  for (int when = 0; when < 2; ++when) {
    TlsByteClient client = ConnectTls();
    ASSERT_TRUE(when == 0 ? client.Start() : client.Enter());
    // A record of the right form with the wrong content.
    ASSERT_TRUE(client.socket().Send(std::string("\x17\x03\x03\x00\x20", 5) + std::string(32, 'z')));
    EXPECT_TRUE(client.socket().HangsUp());
    const absl::Status reason = when == 0 ? observer_->WaitForRejection() : observer_->WaitForEnd();
    EXPECT_FALSE(reason.ok());
  }
  ExpectOthersAreServed();
}

// A client that is cut off in the middle of a request, and one that leaves between two but without a word.
TEST_F(TlsClientTest, ACutConnectionIsNoGoodBye) {
  Start();
  TlsByteClient client = ConnectTls();
  ASSERT_TRUE(client.Enter());
  client.socket().Close();
  EXPECT_FALSE(observer_->WaitForEnd().ok());
  TlsByteClient polite = ConnectTls();
  ASSERT_TRUE(polite.Enter());
  SSL_shutdown(polite.tls());
  EXPECT_TRUE(polite.socket().HangsUp());
  EXPECT_TRUE(observer_->WaitForEnd().ok());
}

TEST_F(TlsClientTest, KeysAreUpdatedAsOftenAsTheClientLikes) {
  Start();
  TlsByteClient client = ConnectTls();
  ASSERT_TRUE(client.Enter());
  for (int i = 0; i < 100; ++i) {
    ASSERT_EQ(SSL_key_update(client.tls(), SSL_KEY_UPDATE_REQUESTED), 1);
    ASSERT_TRUE(client.Send(Request(0, 0, 4096)));
    ASSERT_EQ(client.Receive(16 + 4096).size(), 16u + 4096);
  }
}

// Who is told by what name, and who is refused.
TEST_F(TlsClientTest, RulesDecideByName) {
  TestServerOptions options;
  options.server.allowed_clients = nbd::AccessRules::Parse({"dn:CN=agent,O=Example"}).value();
  Start(options);
  TlsByteClient client = ConnectTls();
  EXPECT_TRUE(client.Enter());
  ASSERT_EQ(observer_->peers().size(), 1u);
  EXPECT_TRUE(absl::EndsWith(observer_->peers()[0], " 'CN=agent,O=Example'")) << observer_->peers()[0];

  ByteClient plain = Connect();
  ASSERT_TRUE(plain.Greet() && plain.Send(Go("disk")));
  const std::string refusal = plain.Receive(20);
  ASSERT_EQ(refusal.size(), 20u);
  EXPECT_EQ(refusal.substr(12, 4), U32(0x80000002)) << "POLICY";

  auto only_bob = std::make_shared<nbd::Export>();
  only_bob->name = "bobs";
  only_bob->device = std::make_shared<NullDevice>(4096);
  only_bob->allowed_clients = nbd::AccessRules::Parse({"psk:bob"}).value();
  ASSERT_TRUE(server_->exports().Add(only_bob));
  TlsByteClient again = ConnectTls();
  ASSERT_TRUE(again.Start() && again.Send(Go("bobs")));
  EXPECT_EQ(again.Receive(16).substr(12), U32(0x80000002));
  only_bob.reset();
}

TEST_F(TlsClientTest, AnAddressHasSoManyConnectionsAndOthersAreServed) {
  TestServerOptions options;
  options.server.max_connections_per_address = 3;
  Start(options);
  std::deque<ByteClient> clients;
  for (int i = 0; i < 3; ++i) {
    clients.emplace_back(server_->ipv4_port());
    EXPECT_TRUE(clients.back().Enter());
  }
  for (int i = 0; i < 20; ++i) {
    ByteClient more(server_->ipv4_port());
    EXPECT_TRUE(more.HangsUp());
    EXPECT_EQ(observer_->WaitForRejection().code(), absl::StatusCode::kResourceExhausted);
  }
  EXPECT_EQ(server_->server().statistics().over_limit, 20u);
  // Another address, and Unix sockets, which have none.
  ByteClient elsewhere(server_->ipv4_port(), "127.0.0.2");
  EXPECT_TRUE(elsewhere.Enter());
  for (int i = 0; i < 5; ++i) ExpectOthersAreServed();
  // Who goes makes room.
  clients.pop_front();
  observer_->WaitForEnd().IgnoreError();
  while (server_->server().statistics().connections > 3) absl::SleepFor(absl::Milliseconds(1));
  ByteClient next(server_->ipv4_port());
  EXPECT_TRUE(next.Enter());
}

// NBD_CMD_DISC: what was asked for is answered, then TLS ends, then the socket.
TEST_F(TlsClientTest, ADisconnectEndsTlsInOrder) {
  Start();
  TlsByteClient client = ConnectTls();
  ASSERT_TRUE(client.Enter());
  constexpr uint16_t kDisconnect = 2;
  ASSERT_TRUE(client.Send(Request(0, 0, 4096, 7) + Request(kDisconnect, 0, 0, 8)));
  EXPECT_EQ(client.Receive(16 + 4096).substr(0, 16), U32(0x67446698) + U32(0) + U64(7));
  EXPECT_TRUE(client.EndsInOrder());
  EXPECT_TRUE(client.socket().HangsUp());
}

// A server that stops: what runs is answered, what still arrives is told, and TLS ends before the socket.
TEST_F(TlsClientTest, AStopEndsTlsInOrder) {
  auto faulty = std::make_shared<FaultyDevice>(std::make_shared<NullDevice>(uint64_t{1} << 30));
  TestServerOptions options;
  options.device = faulty;
  Start(options);
  TlsByteClient idle = ConnectTls();
  ASSERT_TRUE(idle.Enter());
  TlsByteClient busy = ConnectTls();
  ASSERT_TRUE(busy.Enter());
  faulty->Hold(FaultyDevice::kRead);
  ASSERT_TRUE(busy.Send(Request(0, 0, 4096, 7)));
  ASSERT_TRUE(faulty->WaitUntilHeld(FaultyDevice::kRead, 1));
  std::thread stopping([this] { EXPECT_TRUE(server_->server().Stop(absl::Now() + absl::Seconds(30)).ok()); });
  // The idle one is gone as soon as it stops.
  EXPECT_TRUE(idle.EndsInOrder());
  // A flush, as that is answered whether the stop has reached this connection or not.
  constexpr uint16_t kFlush = 3;
  std::string late;
  do {
    ASSERT_TRUE(busy.Send(Request(kFlush, 0, 0, 8)));
    late = busy.Receive(16);
  } while (late == U32(0x67446698) + U32(0) + U64(8));
  EXPECT_EQ(late, U32(0x67446698) + U32(108) + U64(8)) << "ESHUTDOWN";
  faulty->Release(FaultyDevice::kRead);
  EXPECT_EQ(busy.Receive(16 + 4096).substr(0, 16), U32(0x67446698) + U32(0) + U64(7));
  EXPECT_TRUE(busy.EndsInOrder());
  stopping.join();
}

}  // namespace
}  // namespace berth::testing
