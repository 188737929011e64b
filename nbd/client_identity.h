// ClientIdentity: who a client has proven to be.
#ifndef BERTH_NBD_CLIENT_IDENTITY_H_
#define BERTH_NBD_CLIENT_IDENTITY_H_

#include <string>

namespace berth::nbd {

// A value. At most one of the names is not empty; without TLS both are empty.
struct ClientIdentity {
  std::string distinguished_name;  // Of a verified certificate, as RFC 4514 writes it: "CN=agent,O=Example".
  std::string psk_user;            // Whose pre-shared key it has.
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_IDENTITY_H_
