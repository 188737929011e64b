// Who reaches berthd, and by what: mutual TLS, gRPC's own services, the bound on connections, the
// configuration that ships.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "control/berthd_process.h"
#include "image/io/unique_fd.h"
#include "nbd/tls/test_authority.h"

namespace berth::control {
namespace {

using testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::ostringstream content;
  content << std::ifstream(path).rdbuf();
  EXPECT_FALSE(content.str().empty()) << path;
  return content.str();
}

std::string Runfile(const std::string& path) {
  const std::string beside = BerthdPath();
  return beside.substr(0, beside.size() - strlen("control/berthd")) + path;
}

// An authority and what it signed, as PEM files `name`.pem and `name`.key in a directory.
class Certificates {
 public:
  explicit Certificates(std::string directory) : directory_(std::move(directory)) {}

  std::string Pem(const std::string& name) const { return absl::StrCat(directory_, "/", name, ".pem"); }
  std::string Key(const std::string& name) const { return absl::StrCat(directory_, "/", name, ".key"); }

  // Signed by `authority`, or by itself where that is empty.
  void Make(const std::string& name, const std::string& authority) const {
    std::vector<std::string> command = {"/usr/bin/openssl",
                                        "req",
                                        "-x509",
                                        "-newkey",
                                        "ec",
                                        "-pkeyopt",
                                        "ec_paramgen_curve:prime256v1",
                                        "-nodes",
                                        "-days",
                                        "2",
                                        "-subj",
                                        "/CN=" + name,
                                        "-keyout",
                                        Key(name),
                                        "-out",
                                        Pem(name)};
    const std::vector<std::string> more =
        authority.empty() ? std::vector<std::string>{}
                          : std::vector<std::string>{"-CA",     Pem(authority),
                                                     "-CAkey",  Key(authority),
                                                     "-addext", "basicConstraints=critical,CA:FALSE",
                                                     "-addext", "subjectAltName=IP:127.0.0.1"};
    command.insert(command.end(), more.begin(), more.end());
    const ProcessResult made = RunProcess(command);
    ASSERT_EQ(made.exit_code, 0) << made.output;
  }

 private:
  const std::string directory_;
};

// The port that berthd says it got for 127.0.0.1:0.
std::string PortInLog(const BerthdProcess& berthd) {
  for (absl::string_view line : absl::StrSplit(berthd.log(), '\n')) {
    const std::vector<std::string> parts = absl::StrSplit(line, "port=");
    if (absl::StrContains(line, "mutual TLS") && parts.size() == 2) return parts[1];
  }
  ADD_FAILURE() << "no port in the log";
  return "";
}

grpc::Status ListExports(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  v1::ListExportsResponse answer;
  return v1::ExportService::NewStub(channel)->ListExports(&context, v1::ListExportsRequest(), &answer);
}

TEST(BerthdAccessTest, TcpIsForThoseWithACertificateOfTheAuthority) {
  BerthdProcess berthd;
  const Certificates files(berthd.directory());
  ASSERT_NO_FATAL_FAILURE(files.Make("ca", ""));
  ASSERT_NO_FATAL_FAILURE(files.Make("server", "ca"));
  ASSERT_NO_FATAL_FAILURE(files.Make("client", "ca"));
  ASSERT_NO_FATAL_FAILURE(files.Make("other-ca", ""));
  ASSERT_NO_FATAL_FAILURE(files.Make("stranger", "other-ca"));
  ASSERT_TRUE(berthd.Start({"--listen=127.0.0.1:0", "--tls-certificate=" + files.Pem("server"),
                            "--tls-key=" + files.Key("server"), "--tls-client-ca=" + files.Pem("ca")}));
  const std::string endpoint = "127.0.0.1:" + PortInLog(berthd);

  const auto list_as = [&](const std::string& client) {
    grpc::SslCredentialsOptions tls;
    tls.pem_root_certs = ReadFile(files.Pem("ca"));
    if (!client.empty()) {
      tls.pem_cert_chain = ReadFile(files.Pem(client));
      tls.pem_private_key = ReadFile(files.Key(client));
    }
    return ListExports(grpc::CreateChannel(endpoint, grpc::SslCredentials(tls)));
  };
  const grpc::Status good = list_as("client");
  EXPECT_TRUE(good.ok()) << good.error_message();
  for (const char* refused : {"", "stranger"}) {
    EXPECT_EQ(list_as(refused).error_code(), grpc::StatusCode::UNAVAILABLE) << refused;
  }
  EXPECT_EQ(ListExports(grpc::CreateChannel(endpoint, grpc::InsecureChannelCredentials())).error_code(),
            grpc::StatusCode::UNAVAILABLE);

  const auto berthctl_as = [&](const std::string& client) {
    return RunProcess(
        {Runfile("control/berthctl/berthctl"), "export", "list", "--endpoint=" + endpoint,
         "--tls-ca=" + files.Pem("ca"), "--tls-cert=" + files.Pem(client), "--tls-key=" + files.Key(client)},
        absl::Seconds(60));
  };
  const ProcessResult listed = berthctl_as("client");
  EXPECT_EQ(listed.exit_code, 0) << listed.output;
  EXPECT_THAT(listed.output, HasSubstr("NAME"));
  EXPECT_EQ(berthctl_as("stranger").exit_code, 6);
}

// One call with bytes for messages, as these services have no headers in Debian.
std::string CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                    const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  grpc::CompletionQueue queue;
  const auto done = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  if (!done()) return "no call";
  const grpc::Slice slice(request);
  call->Write(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions().set_last_message(), nullptr);
  if (!done()) return "not sent";
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  const bool read = done();
  grpc::Status status;
  call->Finish(&status, nullptr);
  done();
  if (!read) return status.error_message();
  grpc::Slice whole;
  EXPECT_TRUE(answer.DumpToSingleSlice(&whole).ok());
  return std::string(reinterpret_cast<const char*>(whole.begin()), whole.size());
}

TEST(BerthdAccessTest, HealthAndReflectionAnswer) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start());
  // HealthCheckResponse{status: SERVING}, of the whole server.
  EXPECT_EQ(CallRaw(berthd.channel(), "/grpc.health.v1.Health/Check", ""), "\x08\x01");
  // HealthCheckRequest{service: …}.
  for (const std::string name :
       {"berth.v1.ExportService", "berth.v1.AttachmentService", "berth.v1.ImageService",
        "berth.v1.MonitoringService", "berth.v1.OperationService"}) {
    const std::string request = absl::StrCat("\x0a", std::string(1, static_cast<char>(name.size())), name);
    EXPECT_EQ(CallRaw(berthd.channel(), "/grpc.health.v1.Health/Check", request), "\x08\x01") << name;
  }
  // ServerReflectionRequest{list_services: ""}.
  const std::string services =
      CallRaw(berthd.channel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              std::string("\x3a\x00", 2));
  for (const char* service : {"berth.v1.ExportService", "berth.v1.AttachmentService", "berth.v1.ImageService",
                              "berth.v1.MonitoringService", "grpc.health.v1.Health"}) {
    EXPECT_THAT(services, HasSubstr(service));
  }
  // file_containing_symbol: what a client such as grpcurl needs to make a request.
  const std::string symbol = "berth.v1.ExportService";
  EXPECT_THAT(CallRaw(berthd.channel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                      absl::StrCat("\x22", std::string(1, static_cast<char>(symbol.size())), symbol)),
              HasSubstr("CreateExportRequest"));
}

UniqueFd ConnectTo(const std::string& path) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0) << strerror(errno);
  return fd;
}

// gRPC speaks first to whom it serves; to others there is only the end.
bool IsServed(const UniqueFd& client) {
  pollfd polled = {.fd = client.get(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(poll(&polled, 1, 60000), 1);
  char byte;
  return read(client.get(), &byte, 1) == 1;
}

TEST(BerthdAccessTest, ConnectionsAreBoundedAndMakeRoomWhenTheyEnd) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start({"--max-rpc-connections=2"}));
  UniqueFd first = ConnectTo(berthd.rpc_path());
  const UniqueFd second = ConnectTo(berthd.rpc_path());
  EXPECT_TRUE(IsServed(first));
  EXPECT_TRUE(IsServed(second));
  EXPECT_FALSE(IsServed(ConnectTo(berthd.rpc_path())));
  EXPECT_FALSE(IsServed(ConnectTo(berthd.rpc_path())));
  EXPECT_THAT(berthd.log(), HasSubstr("--max-rpc-connections"));
  for (int i = 0; i < 10; ++i) {
    first.Reset();
    first = ConnectTo(berthd.rpc_path());
    EXPECT_TRUE(IsServed(first)) << i;
  }
  EXPECT_EQ(berthd.Stop(), 0);
}

TEST(BerthdAccessTest, TheConfigurationThatShipsIsAccepted) {
  BerthdProcess berthd;
  const std::string shipped = Runfile("deploy/berthd.toml");
  // As it is, with the paths of this test before its own; and with everything that is commented out.
  ASSERT_TRUE(berthd.Start({"--config=" + shipped}));
  EXPECT_EQ(berthd.Stop(), 0);
  std::string all;
  for (absl::string_view line : absl::StrSplit(ReadFile(shipped), '\n')) {
    const bool option = absl::StartsWith(line, "# ") && absl::StrContains(line, " = ");
    absl::StrAppend(&all, option ? line.substr(2) : line, "\n");
  }
  EXPECT_THAT(all, HasSubstr("\nmetrics = "));
  const std::string path = berthd.directory() + "/all.toml";
  std::ofstream(path) << all;
  // Its credentials and secrets are somebody else's to make.
  nbd::TestAuthority authority;
  const nbd::TestTlsFolder folder(authority);
  const std::string psk = folder.Write("keys.psk", "agent:000102030405060708090a0b0c0d0e0f\n");
  ASSERT_TRUE(berthd.Start({"--config=" + path, "--metrics=127.0.0.1:0", "--secret-root=" + folder.path(),
                            "--tls-certificates=" + folder.path(), "--tls-psk=" + psk}));
  EXPECT_EQ(berthd.Stop(), 0);
}

TEST(BerthdAccessTest, DetachOnExitStopsCleanlyWithoutDevices) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start({"--detach-on-exit"}));
  EXPECT_EQ(berthd.Stop(), 0);
  const std::string config = berthd.directory() + "/berthd.toml";
  std::ofstream(config) << "detach-on-exit = true\n";
  ASSERT_TRUE(berthd.Start({"--config=" + config}));
  EXPECT_EQ(berthd.Stop(), 0);
}

}  // namespace
}  // namespace berth::control
