// Uri: where an export is, as people write it (uri.md): `nbd://HOST:PORT/NAME`,
// `nbds+unix:///NAME?socket=PATH&tls-certificates=DIR`, `nbd+vsock://CID/NAME`.
#ifndef BERTH_NBD_CLIENT_URI_H_
#define BERTH_NBD_CLIENT_URI_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace berth::nbd {

// A value; any thread. What a field does not say is the default that stands at it.
struct Uri {
  static constexpr uint32_t kDefaultPort = 10809;  // IANA's ("NBD URI authority").
  static constexpr uint32_t kHostCid = 2;          // VMADDR_CID_HOST: the hypervisor, as a guest sees it.
  static constexpr size_t kMaxSize = 32 << 10;     // Of the text; an escaped name of 4,096 bytes has 12,288.

  enum class Family : uint8_t { kTcp, kUnix, kVsock };
  enum class TlsType : uint8_t { kAnonymous, kX509, kPsk };

  Family family = Family::kTcp;
  // The schemes with `nbds`: without TLS there is no connection. Those with `nbd` never use it, as a server
  // in the middle could pretend that there is none ("NBD URI scheme").
  bool tls = false;

  std::string host = "localhost";  // Of TCP: a name, or an address without brackets.
  uint32_t port = kDefaultPort;    // Of TCP, where it has 16 bits, and of vsock.
  uint32_t cid = kHostCid;         // Of vsock.
  std::string socket;              // Of a Unix socket: its path, or a NUL and its abstract name.
  std::string export_name;         // UTF-8 without NUL, at most 4,096 bytes.

  // With TLS only. Files are not looked at.
  std::string tls_username;             // The user whose key tls_psk_file holds; X.509 does not need it.
  std::optional<TlsType> tls_type;      // Nothing: what the files below suggest, else X.509.
  std::string tls_certificates;         // A folder with ca-cert.pem and so on.
  std::string tls_psk_file;             // `username:key` lines.
  std::string tls_hostname;             // The name in the server's certificate, where `host` is not it.
  std::optional<bool> tls_verify_peer;  // Nothing: yes.

  // Strict, as RFC 3986 is: INVALID_ARGUMENT names the part, its value and what would be right.
  static absl::StatusOr<Uri> Parse(absl::string_view text);

  // What Parse() reads as the same.
  std::string ToString() const;

  bool operator==(const Uri&) const = default;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_URI_H_
