// Listener: accepts connections on one address and hands them on.
#ifndef BERTH_NBD_LISTENER_H_
#define BERTH_NBD_LISTENER_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "image/io/reactor.h"
#include "image/io/unique_fd.h"
#include "nbd/address.h"
#include "nbd/unix_socket.h"

namespace berth::nbd {

struct ListenOptions {
  mode_t socket_mode = 0600;  // Of a Unix socket's file.
  int backlog = 512;          // Connections that wait to be accepted.
  // How long to wait for somebody to give a descriptor or memory back.
  absl::Duration shortage_pause = absl::Milliseconds(50);
};

// Thread: ordinary threads, one at a time; none of the calls waits for a client. Lifetime: what Start() began
// goes on until Stop() or the destructor and ends by itself soon after, with `on_end`.
class Listener {
 public:
  // Binds and listens. A host name is looked up, which may block, and all of its addresses that this machine
  // has are listened on. INVALID_ARGUMENT, NOT_FOUND or the system's reason, with the address in the text.
  static absl::StatusOr<std::unique_ptr<Listener>> Open(const Address& address,
                                                        const ListenOptions& options = {});

  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  ~Listener() { Stop(); }

  // As given, with the port that the system chose in the place of 0.
  const Address& address() const { return address_; }

  // For whoever accepts connections itself, instead of Start(): the sockets, which listen. The file of a Unix
  // socket stays this object's. Once.
  std::vector<UniqueFd> TakeSockets() { return std::move(sockets_); }

  // Calls `on_connection` on `reactor`'s thread with every connection, and `on_end` once, after the last.
  // Where the process or the system has no descriptor or memory left, new clients wait until there is one
  // again; no client is dropped, and nothing spins. Once.
  void Start(Reactor& reactor, absl::AnyInvocable<void(UniqueFd)> on_connection,
             absl::AnyInvocable<void()> on_end);

  // How often, since Start(), a client had to wait as there was no descriptor or memory left. Until Stop().
  uint64_t shortages() const;

  // No new connections; removes the socket's file. `on_end` follows.
  void Stop();

 private:
  struct Acceptor;

  Listener(Address address, absl::Duration shortage_pause)
      : address_(std::move(address)), shortage_pause_(shortage_pause) {}
  absl::Status OpenUnix(const ListenOptions& options);
  absl::Status OpenTcp(const ListenOptions& options);

  Address address_;
  const absl::Duration shortage_pause_;
  std::optional<UnixSocketFile> file_;
  std::vector<UniqueFd> sockets_;  // Until Start().
  std::shared_ptr<Acceptor> acceptor_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_LISTENER_H_
