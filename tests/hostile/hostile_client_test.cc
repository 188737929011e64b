// Clients that lie, stall, flood and vanish. Each gets its error, and the others are served.
#include <deque>
#include <memory>
#include <random>
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
#include "tests/fixture/test_server.h"
#include "tests/hostile/byte_client.h"

namespace berth::testing {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

// A copy that shares nothing: ThreadSanitizer cannot see the reference counts inside Debian's libabsl, and
// takes a status that two threads share for a race.
absl::Status Unshared(const absl::Status& status) { return absl::Status(status.code(), status.message()); }

class Observer final : public nbd::ClientObserver {
 public:
  absl::Status Connecting(const nbd::Client& client) override {
    MutexLock lock(&mutex_);
    ++connecting_;
    last_ = client;
    return Unshared(refuse_);
  }
  void Disconnected(const nbd::Client&, const absl::Status&) override {
    MutexLock lock(&mutex_);
    ++disconnected_;
  }
  void Rejected(absl::string_view, const absl::Status& reason) override {
    MutexLock lock(&mutex_);
    rejections_.push_back(Unshared(reason));
    changed_.SignalAll();
  }
  absl::Status WaitForRejection() {
    MutexLock lock(&mutex_);
    const absl::Time deadline = Soon();
    while (rejections_.empty() && absl::Now() < deadline) changed_.WaitUntil(&mutex_, deadline);
    if (rejections_.empty()) return absl::UnknownError("nobody was rejected");
    absl::Status first = rejections_.front();
    rejections_.pop_front();
    return first;
  }
  void Refuse(absl::Status status) {
    MutexLock lock(&mutex_);
    refuse_ = std::move(status);
  }
  int connecting() const {
    MutexLock lock(&mutex_);
    return connecting_;
  }
  int disconnected() const {
    MutexLock lock(&mutex_);
    return disconnected_;
  }
  nbd::Client last() const {
    MutexLock lock(&mutex_);
    return last_;
  }

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  int connecting_ = 0;
  int disconnected_ = 0;
  nbd::Client last_;
  absl::Status refuse_;
  std::deque<absl::Status> rejections_;
};

enum class Way { kUnix, kTcp };

class HostileClientTest : public ::testing::TestWithParam<Way> {
 protected:
  void Start(const nbd::ServerOptions& options = {}) {
    TestServerOptions test_options;
    test_options.device = std::make_shared<NullDevice>(uint64_t{1} << 30);
    test_options.client_observer = observer_;
    // One, so that whoever stalls it stalls everybody.
    test_options.reactors = 1;
    test_options.server = options;
    auto server = TestServer::Start(test_options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  ByteClient Connect() {
    return GetParam() == Way::kUnix ? ByteClient(server_->socket_path()) : ByteClient(server_->ipv4_port());
  }
  // A client in the transmission phase, where the machine may be too slow for the handshake's deadline.
  ByteClient ConnectAndEnter() {
    const absl::Time patience = Soon();
    ByteClient client = Connect();
    while (!client.Enter() && absl::Now() < patience) client = Connect();
    return client;
  }
  void ExpectOthersAreServed() {
    ByteClient other = Connect();
    EXPECT_TRUE(other.Enter());
    EXPECT_TRUE(other.Reads());
  }
  nbd::Server& server() { return server_->server(); }

  const std::shared_ptr<Observer> observer_ = std::make_shared<Observer>();
  std::unique_ptr<TestServer> server_;
};

TEST_P(HostileClientTest, RandomBytesInTheHandshake) {
  Start();
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    ByteClient client = Connect();
    std::string bytes(1 + random() % 2000, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    // Half of them after flags and an option's magic number that are right.
    if (i % 2 == 0) bytes = U32(3) + "IHAVEOPT" + U32(random() % 12) + bytes;
    client.Send(bytes);
    client.Close();
  }
  ExpectOthersAreServed();
}

TEST_P(HostileClientTest, HalfAHeaderAndSilence) {
  nbd::ServerOptions options;
  options.handshake_timeout = absl::Milliseconds(300);
  Start(options);
  const std::string conversation = U32(3) + Opt(kOptStructured) + Go("disk");
  ByteClient other = ConnectAndEnter();
  for (size_t size : {0, 3, 4, 12, 25, 40}) {
    ByteClient client = Connect();
    client.Send(conversation.substr(0, size));
    EXPECT_TRUE(other.Reads());
    EXPECT_TRUE(client.HangsUp()) << size;
    const absl::Status reason = observer_->WaitForRejection();
    EXPECT_EQ(reason.code(), absl::StatusCode::kDeadlineExceeded) << reason;
    EXPECT_TRUE(absl::StrContains(reason.message(), "300ms")) << reason;
  }
}

// The deadline is for the handshake: a client may be silent in the transmission phase.
TEST_P(HostileClientTest, DeadlineEndsWithTheHandshake) {
  nbd::ServerOptions options;
  options.handshake_timeout = absl::Milliseconds(200);
  Start(options);
  ByteClient quiet = ConnectAndEnter();
  ByteClient silent = Connect();  // Came later, so its deadline is the later one.
  EXPECT_TRUE(silent.HangsUp());
  EXPECT_TRUE(quiet.Reads());
}

TEST_P(HostileClientTest, FloodOfConnections) {
  nbd::ServerOptions options;
  options.max_connections = 10;
  Start(options);
  std::vector<ByteClient> held;
  for (int i = 0; i < 10; ++i) {
    held.push_back(Connect());
    ASSERT_TRUE(i == 0 ? held.back().Enter() : held.back().Greet());
  }
  for (int i = 0; i < 500; ++i) EXPECT_TRUE(Connect().HangsUp());
  EXPECT_EQ(server().statistics().over_limit, 500u);
  EXPECT_EQ(server().statistics().connections, 10u);
  EXPECT_TRUE(held[0].Reads());
  held[5].Close();
  EXPECT_FALSE(observer_->WaitForRejection().ok());
  // The observer is told before the place is free.
  EXPECT_TRUE(ConnectAndEnter().Reads());
}

TEST_P(HostileClientTest, LimitOfAnExport) {
  nbd::ServerOptions options;
  options.max_connections_per_export = 2;
  Start(options);
  ASSERT_TRUE(server_->AddExport("other", std::make_shared<NullDevice>(4096)).ok());
  ByteClient one = Connect(), two = Connect(), three = Connect();
  ASSERT_TRUE(one.Enter());
  ASSERT_TRUE(two.Enter());
  ASSERT_TRUE(three.Greet());
  ASSERT_TRUE(three.Send(Go("disk")));
  // NBD_REP_ERR_POLICY, with its words; then another export.
  EXPECT_EQ(three.Receive(16), U64(0x3e889045565a9) + U32(kOptGo) + U32(0x80000002));
  const std::string text = "the export has 2 clients, which is as many as it may have";
  EXPECT_EQ(three.Receive(4 + text.size()), U32(static_cast<uint32_t>(text.size())) + text);
  ASSERT_TRUE(three.Send(Go("other")));
  EXPECT_EQ(three.Receive(52).size(), 52u);
  EXPECT_TRUE(three.Reads());
  EXPECT_EQ(server().CountClients("disk", Soon()).value(), 2u);
}

TEST_P(HostileClientTest, HundredThousandOptions) {
  Start();
  ByteClient client = Connect();
  ASSERT_TRUE(client.Greet());
  const std::string option = Opt(kOptStructured);
  int answered = 0;
  while (answered < 100'000 && client.Send(option) && client.Receive(20).size() == 20) ++answered;
  EXPECT_EQ(answered, 1024);
  EXPECT_EQ(observer_->WaitForRejection().code(), absl::StatusCode::kResourceExhausted);
  // The same without ever listening.
  ByteClient deaf = Connect();
  std::string many = U32(3);
  for (int i = 0; i < 1000; ++i) many += option;
  // Until the server, which has no room for its answers, leaves no room for options.
  while (deaf.SendSome(many) == many.size()) many = many.substr(4) + "IHAV";
  ExpectOthersAreServed();
  deaf.Close();
  ExpectOthersAreServed();
}

TEST_P(HostileClientTest, LengthsThatLie) {
  Start();
  for (uint32_t option : {1u, 2u, 3u, 6u, 7u, 9u, 10u, 77u}) {
    ByteClient client = Connect();
    ASSERT_TRUE(client.Greet());
    ASSERT_TRUE(client.Send("IHAVEOPT" + U32(option) + U32(0xffffffff)));
    EXPECT_TRUE(client.HangsUp()) << option;
  }
  ByteClient client = Connect();
  ASSERT_TRUE(client.Greet());
  ASSERT_TRUE(client.Send(Go(std::string(10'000, 'n'))));
  EXPECT_EQ(client.Receive(16), U64(0x3e889045565a9) + U32(kOptGo) + U32(0x80000009));
  ExpectOthersAreServed();
}

TEST_P(HostileClientTest, NamesOfEveryKind) {
  Start();
  for (const std::string& name : {std::string("a/b"), std::string("../../etc/passwd"), std::string("Füße"),
                                  std::string("\n\x1b"), std::string(4096, 'n')}) {
    ASSERT_TRUE(server_->AddExport(name, std::make_shared<NullDevice>(1 << 20)).ok());
    ByteClient client = Connect();
    EXPECT_TRUE(client.Enter(name));
    EXPECT_TRUE(client.Reads());
    EXPECT_EQ(observer_->last().export_name, name);
    EXPECT_TRUE(
        absl::StartsWith(observer_->last().peer, GetParam() == Way::kUnix ? "unix:pid=" : "127.0.0.1:"));
  }
}

TEST_P(HostileClientTest, RequestsThatLie) {
  Start();
  const auto error = [](uint32_t number) { return U32(0x67446698) + U32(number) + U64(1); };
  ByteClient client = Connect();
  ASSERT_TRUE(client.Enter());
  ASSERT_TRUE(client.Send(Request(0, (1 << 30) - 1, 2)));
  EXPECT_EQ(client.Receive(16), error(22));
  ASSERT_TRUE(client.Send(Request(0, ~uint64_t{0}, 0xffffffff)));
  EXPECT_EQ(client.Receive(16), error(22));
  EXPECT_TRUE(client.Reads());
  // A write whose 4 GiB nobody can be asked to read.
  ByteClient writer = Connect();
  ASSERT_TRUE(writer.Enter());
  ASSERT_TRUE(writer.Send(Request(1, 0, 0xffffffff)));
  EXPECT_TRUE(writer.HangsUp());
  ExpectOthersAreServed();
}

TEST_P(HostileClientTest, ClientThatDoesNotRead) {
  Start();
  std::vector<ByteClient> deaf;
  for (int i = 0; i < 4; ++i) {
    deaf.push_back(Connect());
    ASSERT_TRUE(deaf.back().Enter());
    for (int request = 0; request < 64; ++request) ASSERT_TRUE(deaf.back().Send(Request(0, 0, 1 << 20)));
  }
  ExpectOthersAreServed();
  // They do not hold a stop up: past its deadline they are cut off.
  EXPECT_TRUE(server().Stop(absl::Now() + absl::Milliseconds(200)).ok());
  EXPECT_EQ(server().statistics().connections, 0u);
}

TEST_P(HostileClientTest, DisconnectAtEveryByteOfAGoodConversation) {
  Start();
  const std::string conversation = U32(3) + Opt(kOptStructured) + Opt(kOptList) + Go("disk") +
                                   Request(0, 0, 512) + Request(1, 0, 16) + std::string(16, 'w') +
                                   Request(3, 0, 0) + Request(2, 0, 0);
  for (size_t size = 0; size <= conversation.size(); ++size) {
    ByteClient client = Connect();
    ASSERT_TRUE(client.Send(conversation.substr(0, size)));
    client.Close();
  }
  ExpectOthersAreServed();
  ASSERT_TRUE(server().Stop(Soon()).ok());
  EXPECT_EQ(observer_->connecting(), observer_->disconnected());
  EXPECT_EQ(server().statistics().connections, 0u);
}

TEST_P(HostileClientTest, TenThousandExportsInAList) {
  Start();
  auto device = std::make_shared<NullDevice>(4096);
  for (int i = 0; i < 10'000; ++i) {
    ASSERT_TRUE(server_->AddExport(absl::StrCat("export-", i), device, "a description").ok());
  }
  ByteClient stalled = Connect();
  ASSERT_TRUE(stalled.Greet());
  ASSERT_TRUE(stalled.Send(Opt(kOptList)));
  ExpectOthersAreServed();
  ByteClient client = Connect();
  ASSERT_TRUE(client.Greet());
  ASSERT_TRUE(client.Send(Opt(kOptList) + Opt(kOptAbort)));
  std::string list;
  for (std::string piece; !(piece = client.Receive(65536)).empty();) list += piece;
  size_t names = 0;
  for (size_t at = 0; (at = list.find("export-", at)) != std::string::npos; ++at) ++names;
  EXPECT_EQ(names, 10'000u);
}

TEST_P(HostileClientTest, RefusalOfTheObserver) {
  Start();
  observer_->Refuse(absl::FailedPreconditionError("it is attached to /dev/nbd0"));
  ByteClient client = Connect();
  ASSERT_TRUE(client.Greet());
  ASSERT_TRUE(client.Send(Go("disk")));
  const std::string text = "it is attached to /dev/nbd0";
  EXPECT_EQ(client.Receive(20 + text.size()).substr(20), text);
  EXPECT_EQ(server().CountClients("disk", Soon()).value(), 0u);
  observer_->Refuse(absl::OkStatus());
  ASSERT_TRUE(client.Send(Go("disk")));
  EXPECT_EQ(client.Receive(52).size(), 52u);
  EXPECT_EQ(server().CountClients("disk", Soon()).value(), 1u);
  EXPECT_EQ(observer_->disconnected(), 0);
}

TEST_P(HostileClientTest, DisconnectExportEndsItsClientsAndLetsItGo) {
  Start();
  ASSERT_TRUE(server_->AddExport("other", std::make_shared<NullDevice>(1 << 20)).ok());
  ByteClient one = Connect(), two = Connect(), other = Connect();
  ASSERT_TRUE(one.Enter());
  ASSERT_TRUE(two.Enter());
  ASSERT_TRUE(other.Enter("other"));
  EXPECT_EQ(server().CountClients("disk", Soon()).value(), 2u);
  std::shared_ptr<const nbd::Export> removed = server_->exports().Remove("disk");
  ASSERT_TRUE(server().DisconnectExport("disk", Soon()).ok());
  EXPECT_EQ(removed.use_count(), 1);
  EXPECT_EQ(observer_->disconnected(), 2);
  EXPECT_TRUE(one.HangsUp());
  EXPECT_TRUE(two.HangsUp());
  EXPECT_TRUE(other.Reads());
}

TEST_P(HostileClientTest, StopTellsThoseInTheHandshake) {
  Start();
  ByteClient silent = Connect(), served = Connect();
  ASSERT_TRUE(silent.Greet());
  ASSERT_TRUE(served.Enter());
  ASSERT_TRUE(server().Stop(Soon()).ok());
  EXPECT_TRUE(silent.HangsUp());
  EXPECT_TRUE(served.HangsUp());
  EXPECT_FALSE(Connect().connected());
  EXPECT_EQ(server().Listen(nbd::Address::Parse("127.0.0.1:0").value()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

// "Termination of the session during option haggling": "SHOULD error further options received ... with
// NBD_REP_ERR_SHUTDOWN". Asks without end while the server stops. A machine that does not let it run within
// the server's short grace hears nothing, so it tries more than once.
TEST_P(HostileClientTest, StopAnswersOptionsWithShutdown) {
  constexpr uint32_t kAck = 1, kShutdown = 0x80000007;
  nbd::ServerOptions options;
  options.handshake.max_options = 1 << 30;
  uint32_t last = 0;
  for (int attempt = 0; attempt < 50 && last != kShutdown; ++attempt) {
    Start(options);
    ByteClient client = Connect();
    ASSERT_TRUE(client.Greet());
    std::thread asking([&client, &last] {
      do last = client.Ask(kOptList).type;
      while (last == kAck);
    });
    EXPECT_TRUE(server().Stop(Soon()).ok());
    asking.join();
  }
  EXPECT_EQ(last, kShutdown);
}

INSTANTIATE_TEST_SUITE_P(Ways, HostileClientTest, ::testing::Values(Way::kUnix, Way::kTcp),
                         [](const auto& way) { return way.param == Way::kUnix ? "Unix" : "Tcp"; });

}  // namespace
}  // namespace berth::testing
