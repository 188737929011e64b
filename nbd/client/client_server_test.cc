// The client against our own server, from URI to data.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/blocking_pool.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "nbd/client/remote_export.h"
#include "nbd/raw_client.h"
#include "tests/fakes/faulty_device.h"
#include "tests/fixture/test_server.h"

namespace berth::nbd {
namespace {

using berth::testing::TestServer;
using berth::testing::TestServerOptions;
using ::testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;

class ClientServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    reactors_ = ReactorPool::Create(1).value();
    pool_ = std::make_unique<BlockingPool>(1);
  }

  void Start(TestServerOptions options = {}) {
    auto server = TestServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  Reactor& reactor() { return reactors_->at(0); }
  template <typename MakeTask>
  auto Run(MakeTask make_task) {
    return RunOn(reactor(), std::move(make_task));
  }

  absl::StatusOr<std::unique_ptr<RemoteExport>> TryConnect(const std::string& text, size_t connections = 1) {
    const Uri uri = Uri::Parse(text).value();
    return Run([&] { return RemoteExport::Connect(reactor(), *pool_, uri, options_, connections); });
  }
  std::unique_ptr<RemoteExport> Connect(const std::string& text, size_t connections = 1) {
    auto remote = TryConnect(text, connections);
    EXPECT_TRUE(remote.ok()) << remote.status();
    return remote.ok() ? *std::move(remote) : nullptr;
  }
  void Disconnect(std::unique_ptr<RemoteExport> remote) {
    Run([&]() -> Task<void> {
      co_await remote->Disconnect();
      remote.reset();
    });
  }
  absl::StatusOr<std::vector<ListedExport>> List(const std::string& text) {
    const Uri uri = Uri::Parse(text).value();
    return Run([&] { return ListExports(reactor(), *pool_, uri, options_.dial); });
  }

  // Writes and reads through all of `remote`, several requests at once.
  void UseAll(RemoteExport& remote) {
    const std::vector<uint8_t> data = Pattern(4 * kMiB, 3);
    std::vector<uint8_t> back(data.size());
    static constexpr size_t kPiece = 65536;
    const IoResult result = Run([&]() -> Task<IoResult> {
      IoResult worst = IoResult::Ok();
      for (const bool write : {true, false}) {
        Gate gate(reactor());
        for (size_t at = 0; at < data.size(); at += kPiece) {
          Spawn([](RemoteExport& to, bool writing, size_t offset, const uint8_t* from, uint8_t* into,
                   IoResult* bad, Gate::Holder) -> Task<void> {
            Task<IoResult> task =
                writing ? to.Write(offset, absl::MakeConstSpan(from + offset, kPiece), WriteFlags::kNone)
                        : to.Read(offset, absl::MakeSpan(into + offset, kPiece));
            const IoResult one = co_await task;
            if (!one.ok()) *bad = one;
          }(remote, write, at, data.data(), back.data(), &worst, gate.Enter()));
        }
        co_await gate.Close();
        const IoResult flushed = co_await remote.Flush();
        if (!flushed.ok()) worst = flushed;
      }
      co_return worst;
    });
    EXPECT_TRUE(result.ok()) << result.error;
    EXPECT_TRUE(back == data);
  }

  std::unique_ptr<ReactorPool> reactors_;
  std::unique_ptr<BlockingPool> pool_;
  std::unique_ptr<TestServer> server_;
  RemoteOptions options_;
};

TEST_F(ClientServerTest, OverEveryWay) {
  Start({.size = 8 * kMiB});
  const std::string localhost = "nbd://localhost:" + std::to_string(server_->ipv4_port()) + "/disk";
  for (const std::string& uri : {server_->uri(), server_->ipv4_uri(), server_->ipv6_uri(), localhost}) {
    SCOPED_TRACE(uri);
    auto remote = Connect(uri);
    ASSERT_NE(remote, nullptr);
    EXPECT_EQ(remote->client(0).reply_style(), ReplyStyle::kExtended);
    EXPECT_EQ(remote->info().size, 8 * kMiB);
    EXPECT_EQ(remote->info().contexts.size(), 1u);
    EXPECT_FALSE(remote->traits().read_only);
    EXPECT_TRUE(remote->traits().can_discard);
    EXPECT_EQ(remote->traits().preferred_alignment, 4096u);
    UseAll(*remote);
    Disconnect(std::move(remote));
  }
}

TEST_F(ClientServerTest, InEveryStyle) {
  Start({.size = 8 * kMiB});
  options_.dial.extended_headers = false;
  auto structured = Connect(server_->uri());
  EXPECT_EQ(structured->client(0).reply_style(), ReplyStyle::kStructured);
  UseAll(*structured);
  Disconnect(std::move(structured));
  options_.dial.structured_replies = false;
  auto simple = Connect(server_->uri());
  EXPECT_EQ(simple->client(0).reply_style(), ReplyStyle::kSimple);
  EXPECT_TRUE(simple->info().contexts.empty());
  UseAll(*simple);
  Disconnect(std::move(simple));
}

TEST_F(ClientServerTest, SeveralConnections) {
  auto faulty = std::make_shared<FaultyDevice>(MemoryDevice::Create(8 * kMiB).value());
  Start({.device = faulty});
  auto remote = Connect(server_->uri(), 4);
  ASSERT_EQ(remote->connections(), 4u);
  EXPECT_TRUE(remote->shortage().ok());
  EXPECT_EQ(server_->server().statistics().connections, 4u);
  UseAll(*remote);

  // Requests that are held are spread evenly.
  faulty->Hold(FaultyDevice::kFlush);
  std::vector<size_t> in_flight;
  Run([&]() -> Task<void> {
    Gate gate(reactor());
    for (int i = 0; i < 8; ++i) {
      Spawn([](RemoteExport& to, Gate::Holder) -> Task<void> {
        const IoResult result = co_await to.Flush();
        EXPECT_TRUE(result.ok());
      }(*remote, gate.Enter()));
    }
    for (size_t i = 0; i < 4; ++i) in_flight.push_back(remote->client(i).requests_in_flight());
    std::thread([&faulty] {
      EXPECT_TRUE(faulty->WaitUntilHeld(FaultyDevice::kFlush, 8));
      faulty->Release(FaultyDevice::kFlush);
    }).detach();
    co_await gate.Close();
  });
  EXPECT_EQ(in_flight, std::vector<size_t>({2, 2, 2, 2}));
  Disconnect(std::move(remote));
}

TEST_F(ClientServerTest, OneConnectionWhereTheServerAllowsNoMore) {
  Start({.size = kMiB, .multi_connection = false});
  auto remote = Connect(server_->uri(), 4);
  EXPECT_EQ(remote->connections(), 1u);
  EXPECT_TRUE(remote->shortage().ok());
  EXPECT_FALSE(remote->traits().flush_covers_all_channels);
  Disconnect(std::move(remote));
}

TEST_F(ClientServerTest, FewerConnectionsWhereTheServerIsFull) {
  TestServerOptions options;
  options.server.max_connections_per_export = 2;
  Start(options);
  auto remote = Connect(server_->uri(), 4);
  EXPECT_EQ(remote->connections(), 2u);
  EXPECT_FALSE(remote->shortage().ok());
  Disconnect(std::move(remote));
}

TEST_F(ClientServerTest, ErrorsOfTheDisk) {
  auto faulty = std::make_shared<FaultyDevice>(MemoryDevice::Create(8 * kMiB).value());
  Start({.device = faulty});
  auto remote = Connect(server_->uri());
  faulty->Fail(FaultyDevice::kWrite, ENOSPC, 1);
  std::vector<uint8_t> data(512);
  EXPECT_EQ(Run([&] { return remote->Write(0, data, WriteFlags::kNone); }).error, ENOSPC);
  EXPECT_EQ(Run([&] { return remote->Write(0, data, WriteFlags::kNone); }).error, 0);
  EXPECT_EQ(Run([&] { return remote->Read(8 * kMiB, absl::MakeSpan(data)); }).error, EINVAL);
  Disconnect(std::move(remote));
}

TEST_F(ClientServerTest, AReadOnlyExport) {
  Start({.size = kMiB, .read_only = true});
  auto remote = Connect(server_->uri());
  EXPECT_TRUE(remote->traits().read_only);
  std::vector<uint8_t> data(512);
  EXPECT_EQ(Run([&] { return remote->Read(0, absl::MakeSpan(data)); }).error, 0);
  EXPECT_EQ(Run([&] { return remote->Write(0, data, WriteFlags::kNone); }).error, EPERM);
  EXPECT_EQ(Run([&] { return remote->Zero(0, 512, ZeroFlags::kNone); }).error, EPERM);
  EXPECT_EQ(Run([&] { return remote->Discard(0, 512); }).error, EPERM);
  Disconnect(std::move(remote));
}

TEST_F(ClientServerTest, AServerThatGoesAway) {
  Start({.size = kMiB});
  auto remote = Connect(server_->uri(), 2);
  server_.reset();
  std::vector<uint8_t> data(512);
  const int error = Run([&] { return remote->Read(0, absl::MakeSpan(data)); }).error;
  EXPECT_TRUE(error == EIO || error == ESHUTDOWN) << error;
  Disconnect(std::move(remote));
}

TEST_F(ClientServerTest, UnknownExportInTheServersWords) {
  Start({.size = kMiB});
  ASSERT_TRUE(server_->AddExport("second", MemoryDevice::Create(kMiB).value()).ok());
  const absl::Status status = TryConnect(server_->UnixUri("dist")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("there is no export 'dist' here"));
}

TEST_F(ClientServerTest, ListsEverything) {
  Start({.size = kMiB, .description = "Füße"});
  ASSERT_TRUE(server_->AddExport("a/b", MemoryDevice::Create(3 * kMiB).value(), "", true).ok());
  const absl::StatusOr<std::vector<ListedExport>> list = List(server_->uri());
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->size(), 2u);
  const ListedExport& first = (*list)[0];
  EXPECT_TRUE(first.status.ok());
  EXPECT_EQ(first.info.name, "a/b");
  EXPECT_EQ(first.info.size, 3 * kMiB);
  EXPECT_TRUE(first.info.Has(kFlagReadOnly));
  const ListedExport& second = (*list)[1];
  EXPECT_EQ(second.info.name, "disk");
  EXPECT_EQ(second.info.description, "Füße");
  EXPECT_EQ(second.info.block_sizes->preferred, 4096u);
  ASSERT_EQ(second.info.contexts.size(), 1u);
  EXPECT_EQ(second.info.contexts[0].name, "base:allocation");
}

TEST_F(ClientServerTest, WhereNobodyIs) {
  const auto error = [this](const std::string& uri) {
    const absl::Status status = TryConnect(uri).status();
    EXPECT_FALSE(status.ok()) << uri;
    return status.ToString();
  };
  EXPECT_THAT(error("nbd+unix:///?socket=/nonexistent/x"),
              HasSubstr("cannot connect to Unix socket '/nonexistent/x': No such file or directory; is the "
                        "server running?"));
  EXPECT_THAT(error("nbd://127.0.0.1:1/"), HasSubstr("cannot connect to 127.0.0.1:1: Connection refused"));
  EXPECT_THAT(error("nbd://no-such-host.invalid/"), HasSubstr("host 'no-such-host.invalid': "));
  EXPECT_THAT(error("nbd+unix:///?socket=%00berth-nobody"),
              HasSubstr("cannot connect to abstract Unix socket 'berth-nobody': "));
  EXPECT_THAT(error("nbd+vsock://1:2/"), HasSubstr("cannot connect to vsock 1:2: "));
  EXPECT_THAT(error("nbds://127.0.0.1:1/?tls-certificates=/nonexistent"), HasSubstr("/nonexistent"));
}

// A listening socket of the abstract namespace; who connects gets `bytes` and is then held.
class AbstractServer {
 public:
  explicit AbstractServer(const std::string& name)
      : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path + 1, name.data(), name.size());
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    EXPECT_EQ(bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), length), 0) << strerror(errno);
    EXPECT_EQ(listen(socket_.get(), 1), 0);
  }

  UniqueFd Accept(absl::string_view bytes) {
    UniqueFd peer(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!bytes.empty()) {
      EXPECT_EQ(send(peer.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(bytes.size()));
    }
    return peer;
  }

 private:
  UniqueFd socket_;
};

TEST_F(ClientServerTest, AbstractSocketsAndDeadlines) {
  const std::string name = "berth-test-" + std::to_string(getpid());
  AbstractServer server(name);
  options_.dial.handshake_timeout = absl::Milliseconds(50);
  // It does not even greet: it need not be accepted.
  absl::Status status = TryConnect("nbd+unix:///?socket=%00" + name).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no answer within 50ms; awaited was its greeting"));
  server.Accept("");

  UniqueFd held;
  std::thread accepts([&] { held = server.Accept(absl::string_view("NBDMAGICIHAVEOPT\0\3", 18)); });
  status = TryConnect("nbd+unix:///?socket=%00" + name).status();
  accepts.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the answer to NBD_OPT_EXTENDED_HEADERS"));

  std::thread hangs_up([&] { server.Accept("NBDMAGIC"); });
  status = TryConnect("nbd+unix:///?socket=%00" + name).status();
  hangs_up.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("it closed the connection in the place of its greeting"));
}

// A full queue of connections: nobody accepts, and the kernel lets us wait.
TEST_F(ClientServerTest, ConnectingHasADeadline) {
  const std::string name = "berth-full-" + std::to_string(getpid());
  AbstractServer server(name);
  options_.dial.connect_timeout = options_.dial.handshake_timeout = absl::Milliseconds(50);
  absl::Status status;
  for (int i = 0; i < 5 && (status.ok() || absl::StrContains(status.message(), "greeting")); ++i) {
    status = TryConnect("nbd+unix:///?socket=%00" + name).status();
  }
  // Those that gave up have left the queue full: their sockets were never accepted.
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("cannot connect"));
}

}  // namespace
}  // namespace berth::nbd
