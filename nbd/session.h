// Session: one connection in the transmission phase (proto.md, "Transmission").
//
// How it works stands in transmission.h. Whoever makes the socket sizes its buffers: SO_SNDBUF and SO_RCVBUF
// of 4 MiB on both ends of a socketpair double the speed of large requests.
#ifndef BERTH_NBD_SESSION_H_
#define BERTH_NBD_SESSION_H_

#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "image/io/reactor.h"
#include "image/io/unique_fd.h"
#include "nbd/export.h"
#include "nbd/negotiated.h"
#include "nbd/session_options.h"
#include "nbd/transport.h"

namespace berth::nbd {

// A handle on a running session. Thread-safe; may outlive the session and its reactor.
class Session {
 public:
  virtual ~Session() = default;

  // Serves no more requests: running ones finish and are answered, those that still arrive meanwhile are
  // answered with NBD_ESHUTDOWN (a kernel session leaves them unread), then the socket is closed, after
  // `stop_timeout` also on a client that does not read. Returns at once; `on_end` follows.
  virtual void Stop() = 0;
  // As Stop(), without waiting for the client: replies that it does not take are lost. `on_end` follows as
  // soon as the running requests have finished.
  virtual void Abort() = 0;

  // Once ended, what was wrong: OK where the client left between two requests or Stop() was called. OK
  // before.
  virtual absl::Status end_reason() const = 0;
};

// Serves what a handshake agreed on, from the first request on. Any thread; `transport` belongs to `reactor`.
// `on_end` is called once, on the reactor's thread and not within this call, after the socket and the channel
// are closed and the session holds no reference to the export.
std::shared_ptr<Session> StartSession(Reactor& reactor, std::unique_ptr<Transport> transport,
                                      Negotiated negotiated, const SessionOptions& options,
                                      absl::AnyInvocable<void()> on_end);

// The same on `socket` (a connected stream socket, non-blocking or not), without a handshake and with simple
// replies: what the kernel's client speaks on a socketpair.
std::shared_ptr<Session> StartKernelSession(Reactor& reactor, UniqueFd socket,
                                            std::shared_ptr<const Export> served,
                                            const SessionOptions& options, absl::AnyInvocable<void()> on_end);

}  // namespace berth::nbd

#endif  // BERTH_NBD_SESSION_H_
