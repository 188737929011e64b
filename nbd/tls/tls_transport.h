// TlsTransport: a connection under TLS, on a connected stream socket (TCP or Unix).
//
// Its I/O goes through the reactor's ring like a plain transport's, and never blocks the reactor; the work of
// the handshake is done on threads that all connections of the process share. Where the
// kernel can encrypt what is sent (the module `tls`, on TCP), it does, and a send costs what it costs in
// clear.
//
// proto.md, "TLS support". Beside what Transport says:
//  * Receive() returns 0 only after the other end's close_notify; an end without it is -ECONNABORTED, as
//    somebody may have cut the stream. -EPROTO is a breach of TLS; failure() has the words.
//  * The destructor sends close_notify, unless Shutdown() was called or something that was begun to be sent
//    has not left.
#ifndef BERTH_NBD_TLS_TLS_TRANSPORT_H_
#define BERTH_NBD_TLS_TLS_TRANSPORT_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/io/unique_fd.h"
#include "nbd/tls/credentials.h"
#include "nbd/transport.h"

namespace berth::nbd {

// What a TLS handshake came to.
struct TlsPeer {
  // Of the other end's certificate, where it was verified: as RFC 4514 writes names, "CN=agent,O=Example".
  std::string distinguished_name;
  // Whose key both have; empty where certificates were used.
  std::string psk_user;
  std::string version;           // "TLSv1.3"
  std::string cipher;            // "TLS_AES_128_GCM_SHA256"
  bool kernel_encrypts = false;  // What is sent.
};

class TlsTransport : public Transport {
 public:
  // Comes first, once, and nothing else is done meanwhile but Shutdown(), which ends it. UNAUTHENTICATED
  // where either end does not accept the other or they have no method in common, DEADLINE_EXCEEDED after
  // `timeout`, UNAVAILABLE where the connection broke. After an error the transport is of no more use.
  virtual Task<absl::Status> Handshake(absl::Duration timeout) = 0;

  // After the handshake.
  virtual const TlsPeer& peer() const = 0;
  // Why a later operation failed with -EPROTO, for people.
  virtual const std::string& failure() const = 0;
};

// `socket` is non-blocking or not. The next byte to come is the first of the TLS handshake. A client gives
// `server_name`, a host name or an IP address, which the server's certificate must be for; not needed with a
// pre-shared key or where the server is not verified.
std::unique_ptr<TlsTransport> MakeTlsTransport(Reactor& reactor, UniqueFd socket,
                                               std::shared_ptr<const TlsCredentials> credentials,
                                               absl::string_view server_name = "");

}  // namespace berth::nbd

#endif  // BERTH_NBD_TLS_TLS_TRANSPORT_H_
