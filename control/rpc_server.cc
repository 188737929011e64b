#include "control/rpc_server.h"

#include <fcntl.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "control/log.h"
#include "control/read_file.h"
#include "image/io/unique_fd.h"
#include "nbd/unix_socket.h"

namespace berth::control {
namespace {

constexpr int kBacklog = 128;
// After an accept that failed for want of descriptors or memory.
constexpr int kPauseMs = 100;

// Accepts on Unix sockets, looks who it is, and hands the connection to gRPC.
class UnixAcceptor {
 public:
  UnixAcceptor(std::vector<uid_t> allowed, size_t max_connections, grpc::Server* server)
      : allowed_(std::move(allowed)),
        max_connections_(max_connections),
        server_(server),
        stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~UnixAcceptor() { Stop(); }

  absl::Status Listen(const std::string& path) {
    // Others than root and the owner get as far as the check below only where the configuration names them.
    const mode_t mode = allowed_.empty() ? 0600 : 0666;
    absl::StatusOr<nbd::UnixSocketFile> file = nbd::UnixSocketFile::Listen(path, mode, kBacklog);
    if (!file.ok()) return file.status();
    sockets_.push_back(file->TakeSocket());
    const int flags = fcntl(sockets_.back().get(), F_GETFL);
    fcntl(sockets_.back().get(), F_SETFL, flags | O_NONBLOCK);
    files_.push_back(*std::move(file));
    return absl::OkStatus();
  }

  void Start() {
    if (!sockets_.empty()) thread_ = std::thread([this] { Run(); });
  }

  void Stop() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(stop_.get(), &one, sizeof(one));
    if (thread_.joinable()) thread_.join();
    files_.clear();
    sockets_.clear();
    connections_.clear();
  }

 private:
  void Run() {
    std::vector<pollfd> polled;
    while (true) {
      polled = {{.fd = stop_.get(), .events = POLLIN, .revents = 0}};
      for (const UniqueFd& socket : sockets_) {
        polled.push_back({.fd = socket.get(), .events = POLLIN, .revents = 0});
      }
      // Without events: the end of a connection is always told.
      for (const UniqueFd& connection : connections_) {
        polled.push_back({.fd = connection.get(), .events = 0, .revents = 0});
      }
      if (poll(polled.data(), polled.size(), -1) < 0) {
        if (errno == EINTR) continue;
        Log(LogLevel::kError, "cannot wait for connections", {{"errno", absl::StrCat(errno)}});
        return;
      }
      if (polled[0].revents != 0) return;
      // Those that ended first: they make room.
      const pollfd* connection = polled.data() + 1 + sockets_.size();
      std::erase_if(connections_, [&connection](const UniqueFd&) { return (connection++)->revents != 0; });
      for (size_t i = 1; i <= sockets_.size(); ++i) {
        if (polled[i].revents != 0 && !AcceptOne(polled[i].fd)) poll(polled.data(), 1, kPauseMs);
      }
    }
  }

  // False where there is no room at the moment.
  bool AcceptOne(int listening) {
    UniqueFd socket(accept4(listening, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) return errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM;
    ucred peer = {};
    socklen_t length = sizeof(peer);
    const bool known = getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0;
    if (!known || !IsAllowed(peer.uid)) {
      Log(LogLevel::kWarning, "client refused",
          {{"uid", absl::StrCat(peer.uid)}, {"pid", absl::StrCat(peer.pid)}});
      return true;
    }
    if (connections_.size() >= max_connections_) {
      if (!std::exchange(full_, true)) {
        Log(LogLevel::kWarning, "clients refused: there are as many as --max-rpc-connections allows",
            {{"max_rpc_connections", absl::StrCat(max_connections_)}});
      }
      return true;
    }
    full_ = false;
    UniqueFd seen(fcntl(socket.get(), F_DUPFD_CLOEXEC, 0));
    if (!seen) return false;
    connections_.push_back(std::move(seen));
    grpc::AddInsecureChannelFromFd(server_, socket.Release());
    return true;
  }

  bool IsAllowed(uid_t uid) const {
    return uid == 0 || uid == geteuid() || std::find(allowed_.begin(), allowed_.end(), uid) != allowed_.end();
  }

  const std::vector<uid_t> allowed_;
  const size_t max_connections_;
  grpc::Server* const server_;
  UniqueFd stop_;
  std::vector<nbd::UnixSocketFile> files_;
  std::vector<UniqueFd> sockets_;
  // A copy of each connection's descriptor, as gRPC does not tell when one ends. It does not keep the
  // connection open: gRPC shuts a socket down before it closes it.
  std::vector<UniqueFd> connections_;
  bool full_ = false;  // Said already.
  std::thread thread_;
};

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MutualTls(const RpcServerOptions& options) {
  if (options.tls_certificate.empty() || options.tls_key.empty() || options.tls_client_ca.empty()) {
    return absl::InvalidArgumentError(
        "listening on TCP needs mutual TLS: give --tls-certificate, --tls-key and --tls-client-ca");
  }
  grpc::SslServerCredentialsOptions tls(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  absl::StatusOr<std::string> certificate = ReadSmallFile(options.tls_certificate);
  if (!certificate.ok()) return certificate.status();
  absl::StatusOr<std::string> key = ReadSmallFile(options.tls_key);
  if (!key.ok()) return key.status();
  absl::StatusOr<std::string> authority = ReadSmallFile(options.tls_client_ca);
  if (!authority.ok()) return authority.status();
  tls.pem_key_cert_pairs.push_back({*key, *certificate});
  tls.pem_root_certs = *authority;
  return grpc::SslServerCredentials(tls);
}

class Server final : public RpcServer {
 public:
  absl::Status Start(const RpcServerOptions& options,
                     const std::vector<std::unique_ptr<grpc::Service>>& services) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    for (const std::unique_ptr<grpc::Service>& service : services) builder.RegisterService(service.get());
    grpc::ResourceQuota quota("berthd");
    quota.SetMaxThreads(options.max_threads).Resize(options.max_memory_bytes);
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
    // Two daemons on one port would each get some of the calls.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    std::vector<int> ports(options.tcp_addresses.size());
    if (!options.tcp_addresses.empty()) {
      absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> credentials = MutualTls(options);
      if (!credentials.ok()) return credentials.status();
      for (size_t i = 0; i < ports.size(); ++i) {
        builder.AddListeningPort(options.tcp_addresses[i], *credentials, &ports[i]);
      }
    }
    server_ = builder.BuildAndStart();
    for (size_t i = 0; i < ports.size(); ++i) {
      if (server_ == nullptr || ports[i] == 0) {
        return absl::UnavailableError(absl::StrCat(
            "cannot listen on ", options.tcp_addresses[i],
            ": the address is in use or not this machine's, or the certificate and key do not fit"));
      }
    }
    if (server_ == nullptr) return absl::InternalError("the gRPC server did not start");
    for (size_t i = 0; i < ports.size(); ++i) {
      Log(LogLevel::kInfo, "serving gRPC with mutual TLS",
          {{"address", options.tcp_addresses[i]}, {"port", absl::StrCat(ports[i])}});
    }
    acceptor_.emplace(options.allowed_uids, options.max_unix_connections, server_.get());
    for (const std::string& path : options.unix_paths) {
      if (absl::Status status = acceptor_->Listen(path); !status.ok()) return status;
    }
    auto* health = server_->GetHealthCheckService();
    for (const std::string& name : options.service_names) health->SetServingStatus(name, true);
    health->SetServingStatus(true);
    acceptor_->Start();
    return absl::OkStatus();
  }

  ~Server() override { Stop(absl::Now()); }

  void Stop(absl::Time deadline) override {
    if (acceptor_) acceptor_->Stop();
    if (server_ == nullptr) return;
    if (auto* health = server_->GetHealthCheckService()) health->Shutdown();
    server_->Shutdown(absl::ToChronoTime(deadline));
    server_.reset();
  }

 private:
  std::unique_ptr<grpc::Server> server_;
  std::optional<UnixAcceptor> acceptor_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const RpcServerOptions& options, const std::vector<std::unique_ptr<grpc::Service>>& services) {
  auto server = std::make_unique<Server>();
  if (absl::Status status = server->Start(options, services); !status.ok()) return status;
  return server;
}

}  // namespace berth::control
