// Reading what lies in PEM files: certificates, keys, revocation lists.
#ifndef BERTH_NBD_TLS_PEM_H_
#define BERTH_NBD_TLS_PEM_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nbd/tls/openssl_handles.h"

namespace berth::nbd {

// The content of a regular file of at most 1 MiB. NOT_FOUND, PERMISSION_DENIED or INVALID_ARGUMENT, with the
// path. May block. `readable_by_others` may be null.
absl::StatusOr<std::string> ReadCredentialFile(const std::string& path, bool* readable_by_others = nullptr);

// At least one; in the order of the file. INVALID_ARGUMENT, without the path, as from the next two.
absl::StatusOr<std::vector<Certificate>> ParseCertificates(absl::string_view pem);
absl::StatusOr<std::vector<RevocationList>> ParseRevocationLists(absl::string_view pem);
// A key without a pass phrase.
absl::StatusOr<PrivateKey> ParsePrivateKey(absl::string_view pem);

// FAILED_PRECONDITION, with the date, where today is before or after its time.
absl::Status CheckDates(const X509* certificate);
absl::Status CheckDates(const X509_CRL* list);

// As RFC 4514 writes it, in UTF-8: "CN=agent,O=Example".
std::string DistinguishedName(const X509* certificate);

}  // namespace berth::nbd

#endif  // BERTH_NBD_TLS_PEM_H_
