// Owners of OpenSSL's objects.
#ifndef BERTH_NBD_TLS_OPENSSL_HANDLES_H_
#define BERTH_NBD_TLS_OPENSSL_HANDLES_H_

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <memory>

namespace berth::nbd {

template <auto kFree>
struct OpensslDeleter {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};

using SslContext = std::unique_ptr<SSL_CTX, OpensslDeleter<SSL_CTX_free>>;
using SslConnection = std::unique_ptr<SSL, OpensslDeleter<SSL_free>>;
using OpensslBio = std::unique_ptr<BIO, OpensslDeleter<BIO_free_all>>;
using Certificate = std::unique_ptr<X509, OpensslDeleter<X509_free>>;
using RevocationList = std::unique_ptr<X509_CRL, OpensslDeleter<X509_CRL_free>>;
using PrivateKey = std::unique_ptr<EVP_PKEY, OpensslDeleter<EVP_PKEY_free>>;

}  // namespace berth::nbd

#endif  // BERTH_NBD_TLS_OPENSSL_HANDLES_H_
