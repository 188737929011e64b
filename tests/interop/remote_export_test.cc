// Our client against the servers that Debian has, qemu-nbd, nbdkit and nbd-server, and against Berth: over
// Unix sockets and TCP, in clear, under TLS with certificates and with pre-shared keys.
#include "nbd/client/remote_export.h"

#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/blocking_pool.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"
#include "nbd/client/dial.h"
#include "nbd/client/uri.h"
#include "nbd/tls/credentials.h"
#include "nbd/tls/test_authority.h"
#include "tests/fixture/test_server.h"
#include "tests/interop/peer.h"
#include "tests/interop/program.h"

namespace berth::testing {
namespace {

using ::testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;
constexpr char kPskLine[] = "alice:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";

class RemoteExportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    reactors_ = ReactorPool::Create(1).value();
    pool_ = std::make_unique<BlockingPool>(1);
    // For its folder; each peer has an image of its own there.
    server_ = TestServer::Start().value();
    content_ = RandomBytes(kMiB, 5) + std::string(6 * kMiB, '\0') + RandomBytes(kMiB, 6);
    WriteFile(Path("disk.raw"), content_);
    ASSERT_EQ(RunProgram({"fallocate", "--dig-holes", Path("disk.raw")}).exit_code, 0);
    tls_.Write("keys.psk", kPskLine);
  }

  std::string Path(const std::string& name) const { return server_->folder() + "/" + name; }
  void StartPeer(const std::vector<std::string>& command, bool tcp = false) {
    peer_.reset();
    unlink(Path("peer.sock").c_str());
    auto peer = Peer::Start(command, server_->folder(), tcp);
    ASSERT_TRUE(peer.ok()) << peer.status();
    peer_ = *std::move(peer);
  }
  // The peer's address under TLS, with what the client needs.
  std::string TlsUri(const std::string& query) const {
    std::string uri = peer_->Uri("disk");
    uri.replace(0, 3, "nbds");
    return absl::StrCat(uri, absl::StrContains(uri, '?') ? "&" : "?", query);
  }
  std::string Certificates() const { return "tls-certificates=" + tls_.path(); }
  std::string Psk() const { return "tls-username=alice&tls-psk-file=" + tls_.File("keys.psk"); }

  template <typename MakeTask>
  auto Run(MakeTask make_task) {
    return RunOn(reactors_->at(0), std::move(make_task));
  }
  absl::StatusOr<std::unique_ptr<nbd::RemoteExport>> Connect(const std::string& text, size_t connections) {
    const absl::StatusOr<nbd::Uri> uri = nbd::Uri::Parse(text);
    if (!uri.ok()) return uri.status();
    return Run(
        [&] { return nbd::RemoteExport::Connect(reactors_->at(0), *pool_, *uri, options_, connections); });
  }
  absl::Status ConnectError(const std::string& text) {
    auto remote = Connect(text, 1);
    if (!remote.ok()) return remote.status();
    Leave(*std::move(remote));
    return absl::OkStatus();
  }
  void Leave(std::unique_ptr<nbd::RemoteExport> remote) {
    Run([&]() -> Task<void> {
      co_await remote->Disconnect();
      EXPECT_TRUE(remote->client(0).status().ok()) << remote->client(0).status();
      remote.reset();
    });
  }

  // Reads everything, writes, zeroes, discards, flushes, and reads again.
  void UseExport(const std::string& uri, nbd::ReplyStyle style) {
    SCOPED_TRACE(uri);
    auto connected = Connect(uri, 4);
    ASSERT_TRUE(connected.ok()) << connected.status();
    std::unique_ptr<nbd::RemoteExport> remote = *std::move(connected);
    EXPECT_EQ(remote->client(0).reply_style(), style);
    EXPECT_EQ(remote->connections(), 4u) << remote->shortage();  // All of them promise CAN_MULTI_CONN.
    EXPECT_EQ(remote->info().size, content_.size());
    const std::vector<uint8_t> data(70'000, 'w');
    std::vector<uint8_t> all(content_.size()), again(content_.size());
    std::vector<Extent> extents;
    const IoResult result = Run([&]() -> Task<IoResult> {
      IoResult one = co_await remote->Read(0, absl::MakeSpan(all));
      if (one.ok()) one = co_await remote->Extents(0, content_.size(), &extents);
      if (one.ok()) one = co_await remote->Write(3 * kMiB + 512, data, WriteFlags::kFua);
      if (one.ok()) one = co_await remote->Zero(0, 65536, ZeroFlags::kNoUnmap);
      if (one.ok()) one = co_await remote->Discard(7 * kMiB, 65536);
      if (one.ok()) one = co_await remote->Prefetch(0, kMiB);
      if (one.ok()) one = co_await remote->Flush();
      if (one.ok()) one = co_await remote->Read(0, absl::MakeSpan(again));
      co_return one;
    });
    EXPECT_TRUE(result.ok()) << strerror(result.error);
    EXPECT_TRUE(std::string(all.begin(), all.end()) == content_);
    EXPECT_FALSE(extents.empty());
    EXPECT_EQ(std::string(again.begin(), again.begin() + 65536), std::string(65536, '\0'));
    const auto written = again.begin() + 3 * kMiB + 512;
    EXPECT_TRUE(std::equal(data.begin(), data.end(), written));
    Leave(std::move(remote));
    WriteFile(Path("disk.raw"), content_);
  }

  std::vector<nbd::ListedExport> List(const std::string& text) {
    const nbd::Uri uri = nbd::Uri::Parse(text).value();
    auto list = Run([&] { return nbd::ListExports(reactors_->at(0), *pool_, uri, options_.dial); });
    EXPECT_TRUE(list.ok()) << list.status();
    return list.ok() ? *std::move(list) : std::vector<nbd::ListedExport>();
  }

  std::unique_ptr<ReactorPool> reactors_;
  std::unique_ptr<BlockingPool> pool_;
  std::unique_ptr<TestServer> server_;
  std::unique_ptr<Peer> peer_;
  nbd::TestAuthority authority_;
  nbd::TestTlsFolder tls_{authority_};
  std::string content_;
  nbd::RemoteOptions options_;
};

constexpr auto kStructured = nbd::ReplyStyle::kStructured;

TEST_F(RemoteExportTest, QemuNbd) {
  for (const bool tcp : {false, true}) {
    StartPeer(QemuNbdCommand(Path("disk.raw"), "Füße"), tcp);
    UseExport(peer_->Uri("disk"), kStructured);
    const std::vector<nbd::ListedExport> list = List(peer_->Uri(""));
    ASSERT_EQ(list.size(), 1u);
    EXPECT_TRUE(list[0].status.ok()) << list[0].status;
    EXPECT_EQ(list[0].info.name, "disk");
    EXPECT_EQ(list[0].info.description, "Füße");
    EXPECT_EQ(list[0].info.size, content_.size());
    ASSERT_TRUE(list[0].info.block_sizes.has_value());
    EXPECT_EQ(list[0].info.block_sizes->maximum_payload, 32 * kMiB);
    ASSERT_EQ(list[0].info.contexts.size(), 1u);
    EXPECT_EQ(list[0].info.contexts[0].name, "base:allocation");
    const absl::Status status = ConnectError(peer_->Uri("other"));
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  }
}

TEST_F(RemoteExportTest, QemuNbdWithCertificates) {
  for (const bool tcp : {false, true}) {
    std::vector<std::string> command = QemuNbdCommand(Path("disk.raw"), "");
    command.insert(command.end(),
                   {"--object", absl::StrCat("tls-creds-x509,id=tls,endpoint=server,dir=", tls_.path()),
                    "--tls-creds", "tls"});
    StartPeer(command, tcp);
    UseExport(TlsUri(Certificates() + (tcp ? "" : "&tls-hostname=localhost")), kStructured);
    EXPECT_EQ(ConnectError(peer_->Uri("disk")).code(), absl::StatusCode::kUnauthenticated);
    const absl::Status other = ConnectError(TlsUri(Certificates() + "&tls-hostname=other.example"));
    EXPECT_EQ(other.code(), absl::StatusCode::kUnauthenticated) << other;
    if (!tcp) {
      EXPECT_THAT(std::string(ConnectError(TlsUri(Certificates())).message()),
                  HasSubstr("add tls-hostname=NAME"));
    }
  }
}

TEST_F(RemoteExportTest, QemuNbdWithAKey) {
  std::vector<std::string> command = QemuNbdCommand(Path("disk.raw"), "");
  command.insert(command.end(),
                 {"--object", absl::StrCat("tls-creds-psk,id=tls,endpoint=server,dir=", tls_.path()),
                  "--tls-creds", "tls"});
  StartPeer(command);
  UseExport(TlsUri(Psk()), kStructured);
  tls_.Write("wrong.psk", "alice:ffffffffffffffffffffffffffffffff\n");
  EXPECT_FALSE(ConnectError(TlsUri("tls-username=alice&tls-psk-file=" + tls_.File("wrong.psk"))).ok());
}

TEST_F(RemoteExportTest, Nbdkit) {
  for (const bool tcp : {false, true}) {
    StartPeer(NbdkitCommand(Path("disk.raw"), "of nbdkit"), tcp);
    UseExport(peer_->Uri("disk"), kStructured);
    const std::vector<nbd::ListedExport> list = List(peer_->Uri(""));
    ASSERT_EQ(list.size(), 1u);
    EXPECT_EQ(list[0].info.name, "disk");
    EXPECT_EQ(list[0].info.description, "of nbdkit");
  }
}

TEST_F(RemoteExportTest, NbdkitWithoutStructuredReplies) {
  StartPeer({"nbdkit", "-f", "--no-sr", "file", Path("disk.raw")});
  UseExport(peer_->Uri(""), nbd::ReplyStyle::kSimple);
}

// It refuses what is not aligned, so that the client must have asked.
TEST_F(RemoteExportTest, NbdkitWithBlockSizes) {
  StartPeer({"nbdkit", "-f", "--filter=blocksize-policy", "file", Path("disk.raw"), "blocksize-minimum=512",
             "blocksize-preferred=4096", "blocksize-maximum=65536", "blocksize-error-policy=error"});
  auto remote = Connect(peer_->Uri(""), 1);
  ASSERT_TRUE(remote.ok()) << remote.status();
  EXPECT_EQ((*remote)->info().block_sizes->minimum, 512u);
  std::vector<uint8_t> all(content_.size());
  EXPECT_EQ(Run([&] { return (*remote)->Read(0, absl::MakeSpan(all)); }).error, 0);  // Cut into pieces.
  EXPECT_TRUE(std::string(all.begin(), all.end()) == content_);
  EXPECT_EQ(Run([&] { return (*remote)->Read(1, absl::MakeSpan(all).first(512)); }).error, EINVAL);
  EXPECT_EQ(Run([&] { return (*remote)->Zero(0, kMiB, ZeroFlags::kNone); }).error, 0);
  Leave(*std::move(remote));
}

TEST_F(RemoteExportTest, NbdkitUnderTls) {
  StartPeer({"nbdkit", "-f", "--tls=require", "--tls-verify-peer", "--tls-certificates=" + tls_.path(),
             "file", Path("disk.raw")},
            true);
  UseExport(TlsUri(Certificates()), kStructured);
  StartPeer(
      {"nbdkit", "-f", "--tls=require", "--tls-psk=" + tls_.File("keys.psk"), "file", Path("disk.raw")});
  UseExport(TlsUri(Psk()), kStructured);
}

TEST_F(RemoteExportTest, NbdkitSpeaksOldstyle) {
  StartPeer({"nbdkit", "-f", "--oldstyle", "file", Path("disk.raw")});
  EXPECT_THAT(std::string(ConnectError(peer_->Uri("")).message()), HasSubstr("oldstyle negotiation"));
}

TEST_F(RemoteExportTest, BerthUnderTls) {
  for (const bool psk : {false, true}) {
    nbd::ServerTlsFiles files;
    (psk ? files.psk : files.certificates) = psk ? tls_.File("keys.psk") : tls_.path();
    files.verify_client = !psk;
    auto credentials = nbd::TlsCredentials::ForServer(files);
    ASSERT_TRUE(credentials.ok()) << credentials.status();
    TestServerOptions options;
    options.size = content_.size();
    options.server.handshake.tls = nbd::TlsMode::kRequire;
    options.server.tls_credentials = [kept = *credentials] { return kept; };
    auto server = TestServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    WriteFile((*server)->image_path(), content_);
    const std::string query = psk ? Psk() : Certificates();
    UseExport(absl::StrCat("nbds", (*server)->ipv4_uri().substr(3), "?", query), nbd::ReplyStyle::kExtended);
    WriteFile((*server)->image_path(), content_);
    UseExport(
        absl::StrCat("nbds", (*server)->uri().substr(3), "&", query, psk ? "" : "&tls-hostname=localhost"),
        nbd::ReplyStyle::kExtended);
    EXPECT_EQ(ConnectError((*server)->uri()).code(), absl::StatusCode::kUnauthenticated);
  }
}

// "tls-type=anon": with a server that wants the same, and with no other.
TEST_F(RemoteExportTest, BerthUnderAnonymousTls) {
  for (const bool anonymous : {true, false}) {
    nbd::ServerTlsFiles files;
    if (!anonymous) files.certificates = tls_.path();
    files.anonymous = anonymous;
    auto credentials = nbd::TlsCredentials::ForServer(files);
    ASSERT_TRUE(credentials.ok()) << credentials.status();
    TestServerOptions options;
    options.size = content_.size();
    options.server.handshake.tls = nbd::TlsMode::kRequire;
    options.server.tls_credentials = [kept = *credentials] { return kept; };
    auto server = TestServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    WriteFile((*server)->image_path(), content_);
    const std::string uri = absl::StrCat("nbds", (*server)->uri().substr(3), "&tls-type=anon");
    if (anonymous) {
      UseExport(uri, nbd::ReplyStyle::kExtended);
    } else {
      EXPECT_EQ(ConnectError(uri).code(), absl::StatusCode::kUnauthenticated);
    }
  }
}

// nbd-server takes no sockets from others, and goes into the background before it listens.
TEST_F(RemoteExportTest, NbdServer) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  UniqueFd free_port(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(bind(free_port.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(getsockname(free_port.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  free_port.Reset();
  WriteFile(Path("nbd.conf"),
            absl::StrCat("[generic]\nlistenaddr = 127.0.0.1\nport = ", ntohs(address.sin_port),
                         "\nallowlist = true\n[disk]\nexportname = ", Path("disk.raw"),
                         "\nflush = true\nfua = true\ntrim = true\n"));
  ASSERT_EQ(RunProgram({"nbd-server", "-C", Path("nbd.conf"), "-p", Path("nbd.pid")}).exit_code, 0);
  struct Process {
    pid_t id = 0;
    ~Process() {
      if (id > 0) kill(id, SIGTERM);
    }
  } server;
  const std::string uri = absl::StrCat("nbd://127.0.0.1:", ntohs(address.sin_port), "/disk");
  // What it does in the background, and when, it does not say.
  absl::Status status;
  for (int i = 0; i < 3000; ++i) {
    const bool known = absl::SimpleAtoi(ReadFile(Path("nbd.pid")), &server.id);
    status = ConnectError(uri);
    if (known && status.ok()) break;
    poll(nullptr, 0, 10);
  }
  ASSERT_TRUE(status.ok()) << status;
  UseExport(uri, nbd::ReplyStyle::kSimple);
  const std::vector<nbd::ListedExport> list = List(uri);
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].info.name, "disk");
}

}  // namespace
}  // namespace berth::testing
