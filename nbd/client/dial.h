// Dial: from a URI to a connection in the transmission phase. ListExports: what a server has.
#ifndef BERTH_NBD_CLIENT_DIAL_H_
#define BERTH_NBD_CLIENT_DIAL_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "image/io/blocking_pool.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "nbd/client/export_info.h"
#include "nbd/client/uri.h"
#include "nbd/tls/credentials.h"
#include "nbd/transport.h"

namespace berth::nbd {

struct DialOptions {
  absl::Duration connect_timeout = absl::Seconds(10);    // Name look-up included. At most a day.
  absl::Duration handshake_timeout = absl::Seconds(10);  // TLS's included. At most a day.
  // As in client_handshake.h.
  bool extended_headers = true;
  bool structured_replies = true;
  std::vector<std::string> contexts = {kBaseAllocation};
  // With a URI that wants TLS: in the place of the files that it names.
  std::shared_ptr<const TlsCredentials> tls_credentials = nullptr;
};

struct Connection {
  std::unique_ptr<Transport> transport;
  Agreement agreement;
};

// On the reactor's thread, where the transport then belongs. `pool` does what may block: name look-up,
// reading files. What they refer to stays until they return.
//
// Errors name the server and what it was about to do: those of ConnectSocket(), of ClientHandshake::status()
// and of the TLS handshake; UNAVAILABLE where the connection breaks, DEADLINE_EXCEEDED with what was awaited.
Task<absl::StatusOr<Connection>> Dial(Reactor& reactor, BlockingPool& pool, const Uri& uri,
                                      const DialOptions& options);

// All of the server's exports, whatever name the URI has; in the server's order.
Task<absl::StatusOr<std::vector<ListedExport>>> ListExports(Reactor& reactor, BlockingPool& pool,
                                                            const Uri& uri, const DialOptions& options);

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_DIAL_H_
