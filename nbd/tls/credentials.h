// TlsCredentials: what one end of TLS connections proves itself with, and what it asks of the other.
//
// X.509 files lie in one folder under the names that qemu and libvirt use:
//   ca-cert.pem      the authorities that the other end's certificate must come from
//   ca-crl.pem       certificates that these authorities have revoked; may be missing
//   server-cert.pem, server-key.pem    of a server; intermediate certificates follow the server's own
//   client-cert.pem, client-key.pem    of a client; both may be missing
// Files of pre-shared keys have GnuTLS's form, see psk_file.h.
//
// Anonymous Diffie-Hellman is what qemu's tls-creds-anon is: bytes that who only listens cannot read, between
// two ends of which neither knows the other, so that somebody in the middle can be both. Only TLS 1.2 has it.
//
// TLS 1.2 and 1.3 are spoken. There is no renegotiation, no compression, no resumption and no early data.
#ifndef BERTH_NBD_TLS_CREDENTIALS_H_
#define BERTH_NBD_TLS_CREDENTIALS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nbd/tls/openssl_handles.h"
#include "nbd/tls/psk_file.h"

namespace berth::nbd {

// At least one of the two is not empty; with both, a client may prove itself with either. Or both are, and
// `anonymous` is set.
struct ServerTlsFiles {
  std::string certificates;    // The folder.
  std::string psk;             // The file.
  bool verify_client = false;  // A client without a certificate of our authorities is refused.
  bool anonymous = false;      // Nobody proves anything.

  bool operator==(const ServerTlsFiles&) const = default;
};

struct ClientTlsFiles {
  std::string certificates;  // The folder. Where empty, the system's authorities are believed.
  // With a key the server must have the same one, and certificates play no part.
  std::string psk;
  std::string psk_user;       // Whose key, of those in the file.
  bool verify_server = true;  // Where not, any certificate will do, and anybody can be the server.
  bool anonymous = false;     // Nobody proves anything, and none of the others is looked at.
};

// Immutable and thread-safe. Shared by the connections that use it.
class TlsCredentials {
 public:
  // Read the files, which may block. Errors name the file and the reason: NOT_FOUND, PERMISSION_DENIED,
  // INVALID_ARGUMENT where it does not hold what it should, FAILED_PRECONDITION where a certificate or a
  // revocation list is not valid today or a key does not fit.
  static absl::StatusOr<std::shared_ptr<const TlsCredentials>> ForServer(const ServerTlsFiles& files);
  static absl::StatusOr<std::shared_ptr<const TlsCredentials>> ForClient(const ClientTlsFiles& files);

  // What is not as it should be, though it works: a secret that others can read.
  const std::vector<std::string>& warnings() const { return warnings_; }

  // For tls_transport.cc.
  bool is_server() const { return server_; }
  // Whether the other end's certificate is checked, a server's against its name too.
  bool verifies_peer() const { return verifies_peer_; }
  ssl_ctx_st* context() const { return context_.get(); }
  const PskKeys& psk_keys() const { return psk_keys_; }
  const std::string& psk_user() const { return psk_user_; }

 private:
  TlsCredentials() = default;

  SslContext context_;
  bool server_ = false;
  bool verifies_peer_ = false;
  PskKeys psk_keys_;
  std::string psk_user_;  // Of a client.
  std::vector<std::string> warnings_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_TLS_CREDENTIALS_H_
