// Where clients come in: a socket of our own, or one that systemd listens on for us.
#ifndef BERTH_CONTROL_BERTH_NBD_LISTENING_H_
#define BERTH_CONTROL_BERTH_NBD_LISTENING_H_

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "control/berth_nbd/command_line.h"
#include "image/io/unique_fd.h"
#include "nbd/listener.h"

namespace berth::control {

// The sockets do not block. Lifetime: a Unix socket's file goes with the object.
struct Listening {
  std::unique_ptr<nbd::Listener> listener;  // Null for a socket that was handed to us.
  std::vector<UniqueFd> sockets;
};

// The socket that the process was started with (LISTEN_PID and LISTEN_FDS, which are taken out of the
// environment), or none. INVALID_ARGUMENT where `line` says how to listen all the same, or where there is
// more than one. Before the process forks.
absl::StatusOr<std::optional<UniqueFd>> TakeActivationSocket(const CommandLine& line);

// Listens as `line` says, or on `activation`. Errors as nbd::Listener::Open().
absl::StatusOr<Listening> Listen(const CommandLine& line, std::optional<UniqueFd> activation);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_LISTENING_H_
