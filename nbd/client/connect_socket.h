// ConnectSocket: from a URI to a connected socket.
#ifndef BERTH_NBD_CLIENT_CONNECT_SOCKET_H_
#define BERTH_NBD_CLIENT_CONNECT_SOCKET_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "image/io/blocking_pool.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/io/unique_fd.h"
#include "nbd/client/uri.h"

namespace berth::nbd {

// Whom a URI is about, for messages: "127.0.0.1:10809", "Unix socket '/run/nbd.sock'", "vsock 2:10809".
std::string ServerName(const Uri& uri);

// On the reactor's thread. `pool` looks names up. A host's addresses are tried one after the other, each with
// its share of the time. Errors say which server, and why: NOT_FOUND where there is no such host, vsock
// device or socket, UNAVAILABLE where nobody listens, DEADLINE_EXCEEDED.
Task<absl::StatusOr<UniqueFd>> ConnectSocket(Reactor& reactor, BlockingPool& pool, const Uri& uri,
                                             absl::Duration timeout);

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_CONNECT_SOCKET_H_
