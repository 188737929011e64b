// SessionOptions: the bounds of one connection in the transmission phase.
#ifndef BERTH_NBD_SESSION_OPTIONS_H_
#define BERTH_NBD_SESSION_OPTIONS_H_

#include <cstddef>

#include "absl/time/time.h"

namespace berth::nbd {

struct SessionOptions {
  // What one connection may have in flight, from the first byte of a request to the last of its reply; at the
  // limit no more is read from the socket until a reply has left. The bytes are those of all its buffers. One
  // request alone is always served, so the least that can be kept is the largest payload (32 MiB) and a
  // receive buffer.
  size_t max_bytes_in_flight = size_t{64} << 20;
  size_t max_requests_in_flight = 1024;

  // A request that the device has not completed by then is answered with an error (ETIMEDOUT, which clients
  // see as NBD_EIO). Until the device completes it, it counts among those in flight; where these are as many
  // as may be, and all overdue, what arrives is answered with the same error at once.
  absl::Duration request_deadline = absl::InfiniteDuration();

  // How long the end of a session waits for the client to take the replies that are left; then the socket is
  // shut down.
  absl::Duration stop_timeout = absl::Seconds(10);

  // Whether a request that arrives while the session stops is answered with NBD_ESHUTDOWN. Where not, it is
  // left unread: the kernel's client sends it again over its next connection, and would make an I/O error of
  // an answer.
  bool refuse_while_stopping = true;

  // After this long without a request a connection gives back what it does not need to wait for one; it then
  // holds about 16 KiB.
  absl::Duration idle_after = absl::Seconds(1);
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_SESSION_OPTIONS_H_
