// Peer: somebody else's NBD server, qemu-nbd or nbdkit, on an image of its own.
#ifndef BERTH_TESTS_INTEROP_PEER_H_
#define BERTH_TESTS_INTEROP_PEER_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "image/io/unique_fd.h"

namespace berth::testing {

// The test listens, and hands the socket over as systemd would: nobody waits for it to appear, and no port is
// lost to somebody else.
class Peer {
 public:
  // Runs `command`, which serves on the socket that it inherits, below `folder`: a Unix socket, or a free
  // port of 127.0.0.1. What it complains about goes to `folder`/peer.log.
  static absl::StatusOr<std::unique_ptr<Peer>> Start(const std::vector<std::string>& command,
                                                     const std::string& folder, bool tcp = false);
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  ~Peer();  // Ends the process.

  // Of the export `name`, which needs no escape.
  std::string Uri(const std::string& name) const;
  // What nbd-client takes for it.
  std::vector<std::string> NbdClientArguments() const;

 private:
  Peer() = default;

  std::string socket_path_;  // Empty over TCP.
  std::string port_;         // Empty over a Unix socket.
  pid_t process_ = -1;
};

// qemu-nbd on a raw image, as "disk", for any number of clients; and nbdkit's file plugin likewise.
std::vector<std::string> QemuNbdCommand(const std::string& image, const std::string& description);
std::vector<std::string> NbdkitCommand(const std::string& image, const std::string& description);
// nbdkit's nbd plugin, which is a client of `uri`.
std::vector<std::string> NbdkitProxyCommand(const std::string& uri);

}  // namespace berth::testing

#endif  // BERTH_TESTS_INTEROP_PEER_H_
