// RpcServer: the gRPC server, and who may talk to it.
//
// On a Unix socket connections are accepted here, and only those of allowed users are handed to gRPC, whose
// own listener does not show the peer. On TCP gRPC listens itself, and only with mutual TLS.
#ifndef BERTH_CONTROL_RPC_SERVER_H_
#define BERTH_CONTROL_RPC_SERVER_H_

#include <grpcpp/impl/service_type.h>
#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace berth::control {

struct RpcServerOptions {
  std::vector<std::string> unix_paths;
  std::vector<std::string> tcp_addresses;  // HOST:PORT; [IPV6]:PORT.
  // What the health service knows, beside the server as a whole: "package.Service".
  std::vector<std::string> service_names;
  // Of TCP: PEM files.
  std::string tls_certificate;
  std::string tls_key;
  std::string tls_client_ca;
  // Who may connect on Unix sockets, beside root and the daemon's own user.
  std::vector<uid_t> allowed_uids;
  // On all Unix sockets together; more are closed at once.
  size_t max_unix_connections = 256;
  int max_threads = 64;
  size_t max_message_bytes = 1 << 20;
  size_t max_memory_bytes = size_t{64} << 20;
};

// Ordinary threads. Lifetime: the services outlive it.
class RpcServer {
 public:
  // Listens and serves. Errors name the address.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const RpcServerOptions& options, const std::vector<std::unique_ptr<grpc::Service>>& services);
  virtual ~RpcServer() = default;

  // No new calls; those under way may finish until `deadline`, and are cancelled then. Once.
  virtual void Stop(absl::Time deadline) = 0;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_RPC_SERVER_H_
