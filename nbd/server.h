// Server: NBD clients that come in by sockets, from listening through the handshake to their sessions.
//
// Connections are spread over the reactors of a pool, and each lives on one. The Server's own calls are for
// ordinary threads (a reactor's thread would wait for itself) and may be made from several at once.
//
// Deleting an export while clients may come and go:
//   1. Take it out of the directory, so that nobody finds it any more.
//   2. CountClients(): where it must not be in use, put it back if that is not 0. Or DisconnectExport().
//   3. Once these say that nobody has it, the server's threads hold no reference to it, and the directory's
//      owner drops the last one on its own thread, where the device may take its time to close.
#ifndef BERTH_NBD_SERVER_H_
#define BERTH_NBD_SERVER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "image/io/reactor_pool.h"
#include "image/io/unique_fd.h"
#include "nbd/access_rules.h"
#include "nbd/address.h"
#include "nbd/client_identity.h"
#include "nbd/export.h"
#include "nbd/handshake.h"
#include "nbd/listener.h"
#include "nbd/session.h"
#include "nbd/tls/credentials.h"

namespace berth::nbd {

// One that has an export.
struct Client {
  std::string export_name;
  std::string peer;  // As PeerName() says it, and under TLS who it is: "127.0.0.1:4711 'CN=agent,O=Example'".
};

// Hears of clients on the reactors' threads: thread-safe, quick, never blocks.
class ClientObserver {
 public:
  virtual ~ClientObserver() = default;

  // A client asks for an export. An error refuses it, and its text is what the client is told. After OK,
  // Disconnected() follows once.
  virtual absl::Status Connecting(const Client& client) = 0;
  // Its connection is closed, and nothing of it refers to the export any more. `reason` is OK where the
  // client said good-bye or was asked to leave.
  virtual void Disconnected(const Client& client, const absl::Status& reason) = 0;
  // A connection came to nothing: the reason of Handshake::close_reason(), DEADLINE_EXCEEDED where the client
  // took too long, UNAUTHENTICATED where TLS failed, RESOURCE_EXHAUSTED where its address has too many
  // connections, or UNAVAILABLE where it was gone. As often as clients like: log it with a limit.
  virtual void Rejected(absl::string_view peer, const absl::Status& reason) = 0;
};

struct ServerOptions {
  size_t max_connections = 1024;  // In all; those past it are closed as soon as they are accepted.
  size_t max_connections_per_export = 256;
  // Of one IPv4 address or IPv6 network (PeerSite()); Unix sockets have none. Those past it are closed at
  // once.
  size_t max_connections_per_address = 1024;
  absl::Duration handshake_timeout = absl::Seconds(10);  // From connecting to the transmission phase.
  absl::Duration stop_timeout = absl::Seconds(10);       // Of the destructor.
  HandshakeOptions handshake;
  SessionOptions session;
  // What a TLS handshake begins with; needed unless `handshake.tls` is kOff. Thread-safe, never blocks.
  std::function<std::shared_ptr<const TlsCredentials>()> tls_credentials;
  // Of all exports; an export's own come after them.
  AccessRules allowed_clients;
  // What rules cannot say; null lets everybody in. Thread-safe, never blocks.
  std::function<bool(const ClientIdentity&)> authorize;
};

struct ServerStatistics {
  size_t connections = 0;   // Now, with those in the handshake.
  uint64_t accepted = 0;    // Ever.
  uint64_t over_limit = 0;  // Of those: closed because there were max_connections, or so many of an address.
  uint64_t not_admitted = 0;  // Of those: ended before the transmission phase.
};

// Lifetime: the pool outlives it; the directory and the observer too, unless Stop() or the destructor ran
// into its deadline, after which connections that would not end may still use them: they are shared for that.
class Server {
 public:
  // `observer` may be null.
  Server(ReactorPool& pool, std::shared_ptr<const ExportDirectory> directory,
         const ServerOptions& options = {}, std::shared_ptr<ClientObserver> observer = nullptr);
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server();

  // Serves clients on one more address; returns it with the port that the system chose in the place of 0.
  // Errors as Listener::Open(); FAILED_PRECONDITION after Stop().
  absl::StatusOr<Address> Listen(const Address& address, const ListenOptions& options = {});

  // Serves a connection that was accepted elsewhere. The observer hears of its end (Disconnected() or
  // Rejected()), unless the server has been stopped.
  void Serve(UniqueFd connection);

  // No new connections; requests that are under way finish and are answered, and handshakes are told
  // NBD_REP_ERR_SHUTDOWN. Returns when every connection is closed. At the deadline what is left is cut off;
  // DEADLINE_EXCEEDED where even that does not end it, as requests are stuck in a device.
  absl::Status Stop(absl::Time deadline);

  // Ends the connections of an export as Stop() does for all. Returns when nobody has it. New clients of this
  // name are the directory's matter.
  absl::Status DisconnectExport(absl::string_view name, absl::Time deadline);

  // How many clients have the export, those included to whom it is being given: whoever found it in the
  // directory before this call is counted. DEADLINE_EXCEEDED where a reactor does not answer in time.
  absl::StatusOr<size_t> CountClients(absl::string_view name, absl::Time deadline) const;

  ServerStatistics statistics() const;

 private:
  class Core;
  class Connection;

  const std::shared_ptr<Core> core_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_SERVER_H_
