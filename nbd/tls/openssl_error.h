// OpenSSL's queue of errors, as text.
#ifndef BERTH_NBD_TLS_OPENSSL_ERROR_H_
#define BERTH_NBD_TLS_OPENSSL_ERROR_H_

#include <string>

namespace berth::nbd {

// The reasons of this thread's last failed calls, oldest first; empties the queue. Never empty text.
std::string TakeOpensslErrors();

}  // namespace berth::nbd

#endif  // BERTH_NBD_TLS_OPENSSL_ERROR_H_
