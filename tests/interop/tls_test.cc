// TLS with Debian's clients, which speak it with GnuTLS: libnbd's and qemu's programs, with certificates and
// with pre-shared keys, TLS 1.3 and 1.2, over Unix sockets and TCP.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/memory/memory_device.h"
#include "nbd/tls/credentials.h"
#include "nbd/tls/test_authority.h"
#include "nlohmann/json.hpp"
#include "tests/interop/interop_fixture.h"
#include "tests/interop/peer.h"

namespace berth::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr size_t kMiB = size_t{1} << 20;
constexpr char kPsk[] = "alice:9e32cf7786321a828ef7668f09fb35dbf6b9e32cf7786321a828ef7668f09fb3\n";

enum class Proof { kCertificates, kPsk };

// What the server believes, what qemu's client is told of the version, and how it is reached.
struct Case {
  Proof proof;
  bool tls12;
  Way way;
};

std::string CaseName(const ::testing::TestParamInfo<Case>& info) {
  return absl::StrCat(info.param.proof == Proof::kPsk ? "Psk" : "Certificates", info.param.tls12 ? "12" : "",
                      info.param.way == Way::kUnix ? "Unix" : "Tcp");
}

class TlsTest : public ::testing::Test {
 protected:
  void Start(nbd::TlsMode mode, bool psk, TestServerOptions options = {}) {
    nbd::ServerTlsFiles files;
    keys_.Write("keys.psk", kPsk);
    if (psk) {
      files.psk = keys_.File("keys.psk");
    } else {
      files.certificates = folder_.path();
      files.verify_client = true;
    }
    StartWith(mode, files, std::move(options));
  }
  void StartWith(nbd::TlsMode mode, const nbd::ServerTlsFiles& files, TestServerOptions options) {
    auto credentials = nbd::TlsCredentials::ForServer(files);
    ASSERT_TRUE(credentials.ok()) << credentials.status();
    options.server.handshake.tls = mode;
    options.server.tls_credentials = [made = *credentials] { return made; };
    auto server = TestServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  // For libnbd.
  std::string Uri(Proof proof, Way way, const std::string& folder = "",
                  const std::string& name = "disk") const {
    const std::string tls = proof == Proof::kPsk
                                ? absl::StrCat("tls-psk-file=", keys_.File("keys.psk"))
                                : absl::StrCat("tls-certificates=", folder.empty() ? folder_.path() : folder);
    const std::string user = proof == Proof::kPsk ? "alice@" : "";
    if (way == Way::kUnix) {
      return absl::StrCat("nbds+unix://", user, "/", name, "?socket=", server_->socket_path(), "&", tls);
    }
    return absl::StrCat("nbds://", user, "localhost:", server_->ipv4_port(), "/", name, "?", tls);
  }

  std::string Path(const std::string& name) const { return server_->folder() + "/" + name; }
  nbd::TestAuthority authority_;
  nbd::TestTlsFolder folder_{authority_};
  nbd::TestTlsFolder keys_;
  std::unique_ptr<TestServer> server_;
};

class TlsClientsTest : public TlsTest, public ::testing::WithParamInterface<Case> {
 protected:
  void Start(TestServerOptions options) {
    TlsTest::Start(nbd::TlsMode::kRequire, GetParam().proof == Proof::kPsk, std::move(options));
  }
  std::string LibnbdUri() const { return Uri(GetParam().proof, GetParam().way); }
  // The arguments of qemu's programs before the command's own.
  std::vector<std::string> Qemu(std::vector<std::string> program) const {
    const std::string version = GetParam().tls12 ? ",priority=NORMAL:-VERS-TLS1.3" : "";
    program.push_back("--object");
    program.push_back(
        GetParam().proof == Proof::kPsk
            ? absl::StrCat("tls-creds-psk,id=tls,endpoint=client,username=alice,dir=", keys_.path(), version)
            : absl::StrCat("tls-creds-x509,id=tls,endpoint=client,dir=", folder_.path(), version));
    return program;
  }
  std::string QemuImage() const {
    const std::string server =
        GetParam().way == Way::kUnix
            ? absl::StrCat("server.type=unix,server.path=", server_->socket_path(), ",tls-hostname=localhost")
            : absl::StrCat("server.type=inet,server.host=127.0.0.1,server.port=", server_->ipv4_port());
    return absl::StrCat("driver=raw,file.driver=nbd,file.export=disk,file.tls-creds=tls,file.",
                        absl::StrReplaceAll(server, {{",", ",file."}}));
  }
};

INSTANTIATE_TEST_SUITE_P(Cases, TlsClientsTest,
                         ::testing::Values(Case{Proof::kCertificates, false, Way::kUnix},
                                           Case{Proof::kCertificates, false, Way::kIpv4},
                                           Case{Proof::kCertificates, true, Way::kIpv4},
                                           Case{Proof::kPsk, false, Way::kUnix},
                                           Case{Proof::kPsk, false, Way::kIpv4},
                                           Case{Proof::kPsk, true, Way::kIpv4}),
                         CaseName);

TEST_P(TlsClientsTest, NbdinfoAndNbdcopy) {
  Start({.size = 24 * kMiB});
  const json info = json::parse(RunToSuccess({"nbdinfo", "--json", LibnbdUri()}));
  EXPECT_EQ(info["TLS"], true);
  EXPECT_EQ(info["structured"], true);
  EXPECT_EQ(info["exports"][0]["export-size"], 24 * kMiB);
  EXPECT_THAT(RunToSuccess({"nbdinfo", "--list", LibnbdUri()}), HasSubstr("export=\"disk\""));

  WriteFile(Path("in"), RandomBytes(20 * kMiB, 1) + std::string(4 * kMiB, '\0'));
  RunToSuccess({"nbdcopy", "--connections=4", "--requests=16", Path("in"), LibnbdUri()});
  EXPECT_TRUE(ReadFile(server_->image_path()) == ReadFile(Path("in")));
  RunToSuccess({"nbdcopy", "--connections=4", LibnbdUri(), Path("out")});
  EXPECT_TRUE(ReadFile(Path("out")) == ReadFile(Path("in")));
}

TEST_P(TlsClientsTest, QemuImgAndQemuIo) {
  Start({.size = 24 * kMiB});
  WriteFile(Path("in"), RandomBytes(20 * kMiB, 1) + std::string(4 * kMiB, '\0'));
  std::vector<std::string> convert = Qemu({"qemu-img", "convert", "-n", "-W", "-m", "8"});
  convert.insert(convert.end(), {"--target-image-opts", "-f", "raw", Path("in"), QemuImage()});
  RunToSuccess(convert);
  EXPECT_TRUE(ReadFile(server_->image_path()) == ReadFile(Path("in")));
  std::vector<std::string> back = Qemu({"qemu-img", "convert", "--image-opts", "-O", "raw"});
  back.insert(back.end(), {QemuImage(), Path("out")});
  RunToSuccess(back);
  EXPECT_TRUE(ReadFile(Path("out")) == ReadFile(Path("in")));
  std::vector<std::string> io = Qemu({"qemu-io", "--image-opts"});
  io.insert(io.end(), {"-c", "write -P 0x5a 1M 3M", "-c", "read -P 0x5a 1M 3M", "-c",
                       "write -f -P 1 12345 678", "-c", "read -P 1 12345 678", "-c", "flush", QemuImage()});
  EXPECT_THAT(RunToSuccess(io), Not(HasSubstr("verification failed")));
}

// The other programs, over one way for each proof.
class TlsToolsTest : public TlsClientsTest {
 protected:
  // nbdkit's nbd plugin, a client under TLS that serves others in the clear.
  std::vector<std::string> ProxyCommand() const {
    std::vector<std::string> command = {"nbdkit", "-f", "nbd", "export=disk", "shared=true", "tls=require"};
    if (GetParam().proof == Proof::kPsk) {
      command.insert(command.end(), {"tls-username=alice", "tls-psk=" + keys_.File("keys.psk")});
    } else {
      command.push_back("tls-certificates=" + folder_.path());
    }
    if (GetParam().way == Way::kUnix) {
      command.push_back("socket=" + server_->socket_path());
    } else {
      command.insert(command.end(), {"hostname=localhost", absl::StrCat("port=", server_->ipv4_port())});
    }
    return command;
  }
};

INSTANTIATE_TEST_SUITE_P(Cases, TlsToolsTest,
                         ::testing::Values(Case{Proof::kCertificates, false, Way::kIpv4},
                                           Case{Proof::kPsk, false, Way::kUnix}),
                         CaseName);

TEST_P(TlsToolsTest, EveryCommandAndFlag) {
  Start({.size = 64 * kMiB});
  RunToSuccess({"/usr/bin/python3", "tests/interop/commands.py", LibnbdUri()});
}

// What they print of an export is the same as in the clear.
TEST_P(TlsToolsTest, MapsAndDumpsAreThoseInTheClear) {
  TlsTest::Start(nbd::TlsMode::kAllow, GetParam().proof == Proof::kPsk, {.size = 9 * kMiB});
  RunToSuccess(
      {"qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 64k", "-c", "write -P 1 5M 1M", server_->uri()});
  const std::vector<std::string> looks[] = {
      {"nbdinfo", "--map"}, {"nbdinfo", "--map", "--totals", "--json"}, {"nbdinfo", "--size"}, {"nbddump"}};
  for (std::vector<std::string> look : looks) {
    std::vector<std::string> in_clear = look;
    look.push_back(LibnbdUri());
    in_clear.push_back(server_->uri());
    EXPECT_EQ(RunToSuccess(look), RunToSuccess(in_clear));
  }
  std::vector<std::string> map = Qemu({"qemu-img", "map", "--output=json", "--image-opts"});
  map.push_back(QemuImage());
  EXPECT_EQ(json::parse(RunToSuccess(map)),
            json::parse(RunToSuccess({"qemu-img", "map", "--output=json", "-f", "raw", server_->uri()})));
  std::vector<std::string> compare = Qemu({"qemu-img", "compare", "--image-opts", QemuImage()});
  compare.push_back("driver=raw,file.driver=file,file.locking=off,file.filename=" + server_->image_path());
  RunToSuccess(compare);
}

// fio's engine opens no files that a URI names, so it comes through nbdkit.
TEST_P(TlsToolsTest, NbdkitInFront) {
  Start({.size = 64 * kMiB});
  auto proxy = Peer::Start(ProxyCommand(), server_->folder());
  ASSERT_TRUE(proxy.ok()) << proxy.status();
  const std::string uri = (*proxy)->Uri("");
  WriteFile(Path("in"), RandomBytes(40 * kMiB, 2) + std::string(24 * kMiB, '\0'));
  RunToSuccess({"nbdcopy", "--connections=4", "--flush", Path("in"), uri});
  EXPECT_TRUE(ReadFile(server_->image_path()) == ReadFile(Path("in")));
  RunToSuccess({"fio", "--name=verify", "--ioengine=nbd", "--uri=" + uri, "--rw=randrw", "--bsrange=512-64k",
                "--iodepth=32", "--size=32M", "--io_size=8M", "--verify=crc32c", "--do_verify=1",
                "--verify_fatal=1", "--randseed=7", "--output=" + Path("report")});
}

class TlsModesTest : public TlsTest {};

// nbd-client has certificates, and no keys shared beforehand.
TEST_F(TlsModesTest, NbdClientLists) {
  Start(nbd::TlsMode::kRequire, false, {.size = kMiB});
  const std::vector<std::string> list = {"/usr/sbin/nbd-client", "-l", "localhost",
                                         std::to_string(server_->ipv4_port())};
  EXPECT_THAT(RunProgram(list).output, Not(HasSubstr("disk")));
  std::vector<std::string> under_tls = list;
  under_tls.insert(under_tls.end(),
                   {"-certfile", folder_.File("client-cert.pem"), "-keyfile", folder_.File("client-key.pem"),
                    "-cacertfile", folder_.File("ca-cert.pem")});
  EXPECT_THAT(RunToSuccess(under_tls), HasSubstr("\ndisk"));
}

// What nothing but an explicit setting turns on, at both ends.
TEST_F(TlsModesTest, QemusAnonymousCredentials) {
  nbd::ServerTlsFiles files;
  files.anonymous = true;
  StartWith(nbd::TlsMode::kRequire, files, {.size = kMiB});
  const std::string image = absl::StrCat("driver=nbd,export=disk,tls-creds=tls,server.type=unix,server.path=",
                                         server_->socket_path());
  EXPECT_THAT(RunToSuccess({"qemu-io", "--object", "tls-creds-anon,id=tls,endpoint=client", "--image-opts",
                            "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k",
                            absl::StrCat("driver=raw,file.", absl::StrReplaceAll(image, {{",", ",file."}}))}),
              Not(HasSubstr("verification failed")));
}

// "FORCEDTLS mode", to clients that come without TLS, and what they tell people.
TEST_F(TlsModesTest, RequiredTlsIsToldToClientsWithout) {
  Start(nbd::TlsMode::kRequire, false, {.size = kMiB});
  const ProgramResult libnbd = RunProgram({"nbdinfo", server_->uri()});
  EXPECT_NE(libnbd.exit_code, 0);
  const ProgramResult qemu = RunProgram({"qemu-img", "info", server_->uri()});
  EXPECT_NE(qemu.exit_code, 0);
  EXPECT_THAT(qemu.errors, HasSubstr("this server requires TLS; start it with NBD_OPT_STARTTLS"));
}

// "SELECTIVETLS mode".
TEST_F(TlsModesTest, AllowedTlsShowsEachClientItsExports) {
  Start(nbd::TlsMode::kAllow, false, {.size = kMiB});
  auto vault = std::make_shared<nbd::Export>();
  vault->name = "vault";
  vault->device = MemoryDevice::Create(kMiB).value();
  vault->require_tls = true;
  ASSERT_TRUE(server_->exports().Add(vault));

  EXPECT_THAT(RunToSuccess({"nbdinfo", "--list", server_->uri()}), Not(HasSubstr("vault")));
  EXPECT_THAT(RunToSuccess({"nbdinfo", "--list", Uri(Proof::kCertificates, Way::kUnix)}), HasSubstr("vault"));
  RunToSuccess({"nbdinfo", server_->uri()});
  EXPECT_NE(RunProgram({"nbdinfo", server_->UnixUri("vault")}).exit_code, 0);
  RunToSuccess({"nbdinfo", Uri(Proof::kCertificates, Way::kUnix, "", "vault")});
  vault.reset();
}

TEST_F(TlsModesTest, WithoutTlsAClientThatWantsItGoesAway) {
  Start(nbd::TlsMode::kOff, false, {.size = kMiB});
  EXPECT_NE(RunProgram({"nbdinfo", Uri(Proof::kCertificates, Way::kUnix)}).exit_code, 0);
  RunToSuccess({"nbdinfo", server_->uri()});
}

class TlsRefusalsTest : public TlsTest {
 protected:
  void ExpectRefused(const std::string& what, const std::string& folder) {
    // libnbd checks a server's certificate on TCP alone.
    EXPECT_NE(RunProgram({"nbdinfo", Uri(Proof::kCertificates, Way::kIpv4, folder)}).exit_code, 0) << what;
    // Others are served.
    RunToSuccess({"nbdinfo", Uri(Proof::kCertificates, Way::kUnix)});
  }
};

TEST_F(TlsRefusalsTest, CertificatesThatAreNotGood) {
  nbd::TestTlsFolder client(authority_);
  const nbd::TestAuthority::Issued revoked = authority_.Issue();
  folder_.Write("ca-crl.pem", authority_.RevocationList({revoked.serial}));
  Start(nbd::TlsMode::kRequire, false, {.size = kMiB});

  client.WriteClient(revoked);
  ExpectRefused("revoked", client.path());
  nbd::TestAuthority other("Others");
  client.WriteClient(other.Issue());
  ExpectRefused("of another authority", client.path());
  nbd::TestAuthority::Wanted expired;
  expired.ends = -absl::Hours(1);
  client.WriteClient(authority_.Issue(expired));
  ExpectRefused("expired", client.path());
  client.Remove("client-cert.pem");
  client.Remove("client-key.pem");
  ExpectRefused("none", client.path());
  // The server is not whom this client believes.
  client.WriteClient(authority_.Issue());
  client.Write("ca-cert.pem", other.certificate());
  ExpectRefused("the server is of another authority", client.path());
  EXPECT_GE(server_->server().statistics().not_admitted, 5u);
}

TEST_F(TlsRefusalsTest, KeysThatAreNotKnown) {
  Start(nbd::TlsMode::kRequire, true, {.size = kMiB});
  RunToSuccess({"nbdinfo", Uri(Proof::kPsk, Way::kUnix)});
  keys_.Write("keys.psk", "alice:0032cf7786321a828ef7668f09fb35dbf6b9e32cf7786321a828ef7668f09fb3\n");
  EXPECT_NE(RunProgram({"nbdinfo", Uri(Proof::kPsk, Way::kUnix)}).exit_code, 0);
  keys_.Write("keys.psk", "mallory:9e32cf7786321a828ef7668f09fb35dbf6b9e32cf7786321a828ef7668f09fb3\n");
  EXPECT_NE(
      RunProgram({"nbdinfo", absl::StrReplaceAll(Uri(Proof::kPsk, Way::kUnix), {{"alice@", "mallory@"}})})
          .exit_code,
      0);
}

// Rules on who may use an export, told by qemu in the server's words.
TEST_F(TlsRefusalsTest, NamesThatTheRulesRefuse) {
  TestServerOptions options;
  options.size = kMiB;
  options.server.allowed_clients = nbd::AccessRules::Parse({"!dn:CN=agent,O=Example", "*"}).value();
  Start(nbd::TlsMode::kRequire, false, std::move(options));
  const ProgramResult result = RunProgram(
      {"qemu-img", "info", "--object",
       absl::StrCat("tls-creds-x509,id=tls,endpoint=client,dir=", folder_.path()), "--image-opts",
       absl::StrCat(
           "driver=nbd,export=disk,tls-creds=tls,server.type=inet,server.host=127.0.0.1,server.port=",
           server_->ipv4_port())});
  EXPECT_NE(result.exit_code, 0);
  EXPECT_THAT(result.errors, HasSubstr("export 'disk' is not for 'CN=agent,O=Example'"));
  nbd::TestTlsFolder other(authority_);
  other.WriteClient(authority_.Issue());
  RunToSuccess({"nbdinfo", Uri(Proof::kCertificates, Way::kUnix, other.path())});
}

}  // namespace
}  // namespace berth::testing
