// Session: one connection in the transmission phase (proto.md, "Transmission").
#ifndef BERTH_NBD_SESSION_H_
#define BERTH_NBD_SESSION_H_

#include <cstddef>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "image/io/reactor.h"
#include "image/io/unique_fd.h"
#include "nbd/export.h"
#include "nbd/negotiated.h"

namespace berth::nbd {

class Transport;  // nbd/transport.h

struct SessionOptions {
  // What one connection may have in flight; at the limit no more is read from the socket until something has
  // completed. One request alone may always be served, so the bytes are at least the largest payload (32
  // MiB).
  size_t max_bytes_in_flight = size_t{64} << 20;
  size_t max_requests_in_flight = 1024;
};

// A handle on a running session. Thread-safe.
class Session {
 public:
  virtual ~Session() = default;

  // Stops reading requests, lets running ones finish and be answered, then closes. Returns at once; `on_end`
  // follows.
  virtual void Stop() = 0;
  // As Stop(), without waiting for the client: replies that it does not take are lost. `on_end` follows as
  // soon as the running requests have finished.
  virtual void Abort() = 0;
};

// Serves a connection, whose handshake has ended, on `reactor` from the first request on. On the reactor's
// thread. `on_end` is called once, on that thread and not within this call, after the transport and the
// channel are closed and the session holds no reference to the export.
std::shared_ptr<Session> StartSession(Reactor& reactor, std::unique_ptr<Transport> transport,
                                      Negotiated negotiated, const SessionOptions& options,
                                      absl::AnyInvocable<void()> on_end);

// Serves `socket` (a connected stream socket, non-blocking or not) on `reactor` from the first request on,
// without a handshake and with simple replies: what the kernel's client speaks on a socketpair. Any thread.
// `on_end` is called once, on the reactor's thread, after the socket and the channel are closed and the
// session holds no reference to the export.
std::shared_ptr<Session> StartKernelSession(Reactor& reactor, UniqueFd socket,
                                            std::shared_ptr<const Export> served,
                                            const SessionOptions& options, absl::AnyInvocable<void()> on_end);

}  // namespace berth::nbd

#endif  // BERTH_NBD_SESSION_H_
