#include "nbd/tls/pem.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/unique_fd.h"
#include "nbd/tls/openssl_error.h"

namespace berth::nbd {
namespace {

constexpr size_t kMaxFileSize = size_t{1} << 20;

OpensslBio Over(absl::string_view text) {
  return OpensslBio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// There is nobody to ask for a pass phrase.
int NoPassPhrase(char*, int, int, void* asked) {
  *static_cast<bool*>(asked) = true;
  return -1;
}

// Calls `read` until it has nothing more. The end of the file is an error to PEM_read_*, and no error to us.
template <typename Owner, typename Read>
absl::StatusOr<std::vector<Owner>> ParseAll(absl::string_view pem, absl::string_view what, Read read) {
  const OpensslBio bio = Over(pem);
  ERR_clear_error();
  std::vector<Owner> found;
  while (auto* object = read(bio.get())) found.emplace_back(object);
  const unsigned long error = ERR_peek_last_error();
  const bool at_end = ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE;
  if (!at_end) return absl::InvalidArgumentError(absl::StrCat("a broken ", what, ": ", TakeOpensslErrors()));
  ERR_clear_error();
  if (found.empty()) return absl::InvalidArgumentError(absl::StrCat("there is no PEM ", what, " in it"));
  return found;
}

std::string DateText(const ASN1_TIME* time) {
  const OpensslBio bio(BIO_new(BIO_s_mem()));
  ASN1_TIME_print(bio.get(), time);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return std::string(text, static_cast<size_t>(size));
}

}  // namespace

absl::StatusOr<std::string> ReadCredentialFile(const std::string& path, bool* readable_by_others) {
  // A fifo must not make this wait.
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status = {};
  if (!file || fstat(file.get(), &status) != 0) return absl::ErrnoToStatus(errno, path);
  if (!S_ISREG(status.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  if (readable_by_others != nullptr) *readable_by_others = (status.st_mode & (S_IRGRP | S_IROTH)) != 0;
  std::string content(kMaxFileSize + 1, '\0');
  size_t size = 0;
  while (size < content.size()) {
    const ssize_t count = read(file.get(), content.data() + size, content.size() - size);
    if (count < 0) return absl::ErrnoToStatus(errno, path);
    if (count == 0) break;
    size += static_cast<size_t>(count);
  }
  if (size > kMaxFileSize) return absl::InvalidArgumentError(absl::StrCat(path, ": more than 1 MiB"));
  content.resize(size);
  return content;
}

absl::StatusOr<std::vector<Certificate>> ParseCertificates(absl::string_view pem) {
  return ParseAll<Certificate>(
      pem, "certificate", [](BIO* bio) { return PEM_read_bio_X509_AUX(bio, nullptr, nullptr, nullptr); });
}

absl::StatusOr<std::vector<RevocationList>> ParseRevocationLists(absl::string_view pem) {
  return ParseAll<RevocationList>(
      pem, "revocation list", [](BIO* bio) { return PEM_read_bio_X509_CRL(bio, nullptr, nullptr, nullptr); });
}

absl::StatusOr<PrivateKey> ParsePrivateKey(absl::string_view pem) {
  const OpensslBio bio = Over(pem);
  ERR_clear_error();
  bool asked = false;
  PrivateKey key(PEM_read_bio_PrivateKey(bio.get(), nullptr, &NoPassPhrase, &asked));
  if (key != nullptr) return key;
  const std::string reason = TakeOpensslErrors();
  if (asked) {
    return absl::InvalidArgumentError("the key has a pass phrase, and nobody is there to give it; remove it");
  }
  return absl::InvalidArgumentError(absl::StrCat("there is no PEM private key in it: ", reason));
}

absl::Status CheckDates(const X509* certificate) {
  const ASN1_TIME* begin = X509_get0_notBefore(certificate);
  const ASN1_TIME* end = X509_get0_notAfter(certificate);
  if (X509_cmp_current_time(begin) > 0) {
    return absl::FailedPreconditionError(absl::StrCat("the certificate of ", DistinguishedName(certificate),
                                                      " is not valid before ", DateText(begin)));
  }
  if (X509_cmp_current_time(end) < 0) {
    return absl::FailedPreconditionError(absl::StrCat("the certificate of ", DistinguishedName(certificate),
                                                      " has expired on ", DateText(end)));
  }
  return absl::OkStatus();
}

absl::Status CheckDates(const X509_CRL* list) {
  const ASN1_TIME* next = X509_CRL_get0_nextUpdate(list);
  if (next == nullptr || X509_cmp_current_time(next) >= 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the revocation list should have been replaced by ", DateText(next)));
}

std::string DistinguishedName(const X509* certificate) {
  const OpensslBio bio(BIO_new(BIO_s_mem()));
  // Letters beyond ASCII stay readable.
  constexpr unsigned long kFlags = XN_FLAG_RFC2253 & ~static_cast<unsigned long>(ASN1_STRFLGS_ESC_MSB);
  X509_NAME_print_ex(bio.get(), X509_get_subject_name(certificate), 0, kFlags);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return std::string(text, static_cast<size_t>(size));
}

}  // namespace berth::nbd
