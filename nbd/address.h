// Address: where a server listens, as people write it: `unix:PATH`, `HOST:PORT`, `[IPV6]:PORT`.
#ifndef BERTH_NBD_ADDRESS_H_
#define BERTH_NBD_ADDRESS_H_

#include <sys/socket.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace berth::nbd {

// A value; any thread.
struct Address {
  // The port that IANA keeps for NBD (proto.md, "Newstyle negotiation").
  static constexpr uint16_t kDefaultPort = 10809;
  // What sockaddr_un holds beside its terminating NUL.
  static constexpr size_t kMaxUnixPath = 107;

  enum class Kind : uint8_t { kUnix, kTcp };

  Kind kind = Kind::kUnix;
  std::string path;              // Of a Unix socket.
  std::string host;              // A name or an address without brackets; empty means every address.
  uint16_t port = kDefaultPort;  // 0 lets the system choose.

  // `unix:PATH`, `HOST`, `HOST:PORT`, `[IPV6]`, `[IPV6]:PORT` or `:PORT`. Looks nothing up. INVALID_ARGUMENT
  // quotes the text and says what would be right.
  static absl::StatusOr<Address> Parse(absl::string_view text);

  // What Parse() reads.
  std::string ToString() const;

  bool operator==(const Address&) const = default;
};

// The other end of `socket`, for logs and events: "127.0.0.1:4711", "[::1]:4711", or for a Unix socket
// "unix:pid=4711,uid=1000".
std::string PeerName(int socket);

// Whom a limit by address counts the other end of `socket` to: its IPv4 address, or its network of 64 bits,
// which is what one site of IPv6 has. Empty for a Unix socket.
std::string PeerSite(int socket);

// The address that `socket` is bound to.
absl::StatusOr<Address> LocalAddress(int socket);

}  // namespace berth::nbd

#endif  // BERTH_NBD_ADDRESS_H_
