#include "nbd/tls/credentials.h"

#include <openssl/err.h>
#include <openssl/x509_vfy.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nbd/tls/openssl_error.h"
#include "nbd/tls/pem.h"

namespace berth::nbd {
namespace {

// TLS 1.3's suites, the cheapest first; keys shared beforehand are used with SHA-256 alone (RFC
// 8446, 4.2.11).
constexpr char kSuites[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
// TLS 1.2's: authenticated encryption with forward secrecy and nothing else.
constexpr char kCertificateCiphers[] = "ECDHE+AESGCM:ECDHE+CHACHA20";
constexpr char kPskCiphers[] = "kDHEPSK+AESGCM:kECDHEPSK+CHACHA20:kDHEPSK+CHACHA20";
// No cipher of the default levels: nothing else brings it in. With 256 bits, as the library takes a group for
// Diffie-Hellman that is worth the cipher: of 3,072 bits here, and of 1,024 for the shorter one.
constexpr char kAnonymousCiphers[] = "ADH-AES256-GCM-SHA384:@SECLEVEL=0";

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

absl::StatusOr<SslContext> NewContext(bool server, const std::string& ciphers) {
  SslContext context(SSL_CTX_new(server ? TLS_server_method() : TLS_client_method()));
  if (context == nullptr) return absl::InternalError(TakeOpensslErrors());
  SSL_CTX* tls = context.get();
  SSL_CTX_set_options(tls, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET |
                               SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA |
                               SSL_OP_ENABLE_KTLS);
  // An idle connection keeps no record buffers; and what is sent is what the file of certificates holds.
  SSL_CTX_set_mode(tls, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_NO_AUTO_CHAIN);
  SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_OFF);
  // A server wants one before it takes a key shared beforehand; a client must have none.
  static constexpr unsigned char kSessionContext[] = "nbd";
  const bool ok =
      SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION) == 1 &&
      SSL_CTX_set_cipher_list(tls, ciphers.c_str()) == 1 && SSL_CTX_set_ciphersuites(tls, kSuites) == 1 &&
      SSL_CTX_set_num_tickets(tls, 0) == 1 && SSL_CTX_set_dh_auto(tls, 1) == 1 &&
      (!server || SSL_CTX_set_session_id_context(tls, kSessionContext, sizeof(kSessionContext) - 1) == 1);
  if (!ok) return absl::InternalError(absl::StrCat("setting up TLS: ", TakeOpensslErrors()));
  return context;
}

absl::StatusOr<SslContext> NewAnonymousContext(bool server) {
  absl::StatusOr<SslContext> context = NewContext(server, kAnonymousCiphers);
  if (context.ok() && SSL_CTX_set_max_proto_version(context->get(), TLS1_2_VERSION) != 1) {
    return absl::InternalError(absl::StrCat("setting up TLS: ", TakeOpensslErrors()));
  }
  return context;
}

// Reads a secret, and warns where others can too.
absl::StatusOr<std::string> ReadSecret(const std::string& path, std::vector<std::string>& warnings) {
  bool readable_by_others = false;
  absl::StatusOr<std::string> content = ReadCredentialFile(path, &readable_by_others);
  if (content.ok() && readable_by_others) {
    warnings.push_back(absl::StrCat(path, ": others than its owner may read this secret; chmod 0600 it"));
  }
  return content;
}

// The certificate of this end, the chain after it, and its key.
absl::Status UseOwnCertificate(SSL_CTX* tls, const std::string& certificate_path, const std::string& key_path,
                               std::vector<std::string>& warnings) {
  const absl::StatusOr<std::string> certificate_pem = ReadCredentialFile(certificate_path);
  if (!certificate_pem.ok()) return certificate_pem.status();
  const absl::StatusOr<std::string> key_pem = ReadSecret(key_path, warnings);
  if (!key_pem.ok()) return key_pem.status();
  absl::StatusOr<std::vector<Certificate>> chain = ParseCertificates(*certificate_pem);
  if (!chain.ok()) return InFile(certificate_path, chain.status());
  const absl::StatusOr<PrivateKey> key = ParsePrivateKey(*key_pem);
  if (!key.ok()) return InFile(key_path, key.status());
  for (const Certificate& certificate : *chain) {
    if (absl::Status status = CheckDates(certificate.get()); !status.ok()) {
      return InFile(certificate_path, status);
    }
  }
  if (X509_check_private_key((*chain)[0].get(), key->get()) != 1) {
    ERR_clear_error();
    return absl::FailedPreconditionError(
        absl::StrCat(key_path, ": this is not the key of the certificate in ", certificate_path));
  }
  bool ok =
      SSL_CTX_use_certificate(tls, (*chain)[0].get()) == 1 && SSL_CTX_use_PrivateKey(tls, key->get()) == 1;
  for (size_t i = 1; ok && i < chain->size(); ++i) {
    ok = SSL_CTX_add1_chain_cert(tls, (*chain)[i].get()) == 1;
  }
  if (!ok) return absl::InvalidArgumentError(absl::StrCat(certificate_path, ": ", TakeOpensslErrors()));
  return absl::OkStatus();
}

// An authority without a list has revoked nothing; every other fault of a chain counts.
int VerifyChain(int ok, X509_STORE_CTX* context) {
  if (ok == 1 || X509_STORE_CTX_get_error(context) != X509_V_ERR_UNABLE_TO_GET_CRL) return ok;
  X509_STORE_CTX_set_error(context, X509_V_OK);
  return 1;
}

absl::Status BelieveAuthorities(SSL_CTX* tls, bool server, const std::string& folder) {
  const std::string ca_path = absl::StrCat(folder, "/ca-cert.pem");
  const absl::StatusOr<std::string> ca_pem = ReadCredentialFile(ca_path);
  if (!ca_pem.ok()) return ca_pem.status();
  const absl::StatusOr<std::vector<Certificate>> authorities = ParseCertificates(*ca_pem);
  if (!authorities.ok()) return InFile(ca_path, authorities.status());
  X509_STORE* store = SSL_CTX_get_cert_store(tls);
  for (const Certificate& authority : *authorities) {
    if (absl::Status status = CheckDates(authority.get()); !status.ok()) return InFile(ca_path, status);
    bool ok = X509_STORE_add_cert(store, authority.get()) == 1;
    // Clients are told whose certificates are wanted.
    if (server) ok = ok && SSL_CTX_add_client_CA(tls, authority.get()) == 1;
    if (!ok) return absl::InvalidArgumentError(absl::StrCat(ca_path, ": ", TakeOpensslErrors()));
  }

  const std::string crl_path = absl::StrCat(folder, "/ca-crl.pem");
  const absl::StatusOr<std::string> crl_pem = ReadCredentialFile(crl_path);
  if (absl::IsNotFound(crl_pem.status())) return absl::OkStatus();
  if (!crl_pem.ok()) return crl_pem.status();
  const absl::StatusOr<std::vector<RevocationList>> lists = ParseRevocationLists(*crl_pem);
  if (!lists.ok()) return InFile(crl_path, lists.status());
  for (const RevocationList& list : *lists) {
    if (absl::Status status = CheckDates(list.get()); !status.ok()) return InFile(crl_path, status);
    if (X509_STORE_add_crl(store, list.get()) != 1) {
      return absl::InvalidArgumentError(absl::StrCat(crl_path, ": ", TakeOpensslErrors()));
    }
  }
  X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL);
  return absl::OkStatus();
}

absl::StatusOr<PskKeys> ReadPsk(const std::string& path, std::vector<std::string>& warnings) {
  const absl::StatusOr<std::string> content = ReadSecret(path, warnings);
  if (!content.ok()) return content.status();
  absl::StatusOr<PskKeys> keys = ParsePskFile(*content);
  if (!keys.ok()) return InFile(path, keys.status());
  return keys;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const TlsCredentials>> TlsCredentials::ForServer(const ServerTlsFiles& files) {
  if (files.certificates.empty() && files.psk.empty() && !files.anonymous) {
    return absl::InvalidArgumentError("TLS needs a folder of certificates or a file of pre-shared keys");
  }
  if (files.verify_client && files.certificates.empty()) {
    return absl::InvalidArgumentError("verifying clients needs a folder of certificates, with ca-cert.pem");
  }
  const bool certificates = !files.certificates.empty(), psk = !files.psk.empty();
  if (files.anonymous && (certificates || psk)) {
    return absl::InvalidArgumentError(
        "anonymous TLS has neither certificates nor pre-shared keys; leave out the one or the others");
  }
  absl::StatusOr<SslContext> context =
      files.anonymous
          ? NewAnonymousContext(true)
          : NewContext(true, absl::StrCat(certificates ? kCertificateCiphers : "",
                                          certificates && psk ? ":" : "", psk ? kPskCiphers : ""));
  if (!context.ok()) return context.status();
  std::shared_ptr<TlsCredentials> made(new TlsCredentials());
  made->context_ = *std::move(context);
  made->server_ = true;
  if (files.anonymous) return made;
  made->verifies_peer_ = files.verify_client;
  SSL_CTX* tls = made->context_.get();
  if (!files.certificates.empty()) {
    const absl::Status status =
        UseOwnCertificate(tls, absl::StrCat(files.certificates, "/server-cert.pem"),
                          absl::StrCat(files.certificates, "/server-key.pem"), made->warnings_);
    if (!status.ok()) return status;
  }
  if (files.verify_client) {
    if (absl::Status status = BelieveAuthorities(tls, true, files.certificates); !status.ok()) return status;
    SSL_CTX_set_verify(tls, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, &VerifyChain);
  }
  if (!files.psk.empty()) {
    absl::StatusOr<PskKeys> keys = ReadPsk(files.psk, made->warnings_);
    if (!keys.ok()) return keys.status();
    made->psk_keys_ = *std::move(keys);
  }
  return made;
}

absl::StatusOr<std::shared_ptr<const TlsCredentials>> TlsCredentials::ForClient(const ClientTlsFiles& files) {
  const bool psk = !files.psk.empty();
  absl::StatusOr<SslContext> context = files.anonymous
                                           ? NewAnonymousContext(false)
                                           : NewContext(false, psk ? kPskCiphers : kCertificateCiphers);
  if (!context.ok()) return context.status();
  std::shared_ptr<TlsCredentials> made(new TlsCredentials());
  made->context_ = *std::move(context);
  SSL_CTX* tls = made->context_.get();
  if (files.anonymous) return made;
  if (psk) {
    absl::StatusOr<PskKeys> keys = ReadPsk(files.psk, made->warnings_);
    if (!keys.ok()) return keys.status();
    const auto own = keys->find(files.psk_user);
    if (own == keys->end()) {
      return absl::NotFoundError(
          absl::StrCat(files.psk, ": there is no key of user \"", files.psk_user, "\""));
    }
    made->psk_user_ = own->first;
    made->psk_keys_.insert(*own);
    // A server that answers with a certificate instead has not the key: nobody signs for it.
    SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, nullptr);
    return made;
  }

  made->verifies_peer_ = files.verify_server;
  if (files.verify_server) {
    if (files.certificates.empty()) {
      if (SSL_CTX_set_default_verify_paths(tls) != 1) return absl::InternalError(TakeOpensslErrors());
    } else if (absl::Status status = BelieveAuthorities(tls, false, files.certificates); !status.ok()) {
      return status;
    }
    SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, &VerifyChain);
  }
  if (files.certificates.empty()) return made;
  const std::string certificate = absl::StrCat(files.certificates, "/client-cert.pem");
  const std::string key = absl::StrCat(files.certificates, "/client-key.pem");
  const bool has_certificate = !absl::IsNotFound(ReadCredentialFile(certificate).status());
  const bool has_key = !absl::IsNotFound(ReadCredentialFile(key).status());
  if (!has_certificate && !has_key) return made;
  if (absl::Status status = UseOwnCertificate(tls, certificate, key, made->warnings_); !status.ok()) {
    return status;
  }
  return made;
}

}  // namespace berth::nbd
