#include "image/secret/secret.h"

#include <openssl/crypto.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace berth {

void WipeBytes(void* bytes, size_t size) { OPENSSL_cleanse(bytes, size); }

void WipeString(std::string* text) {
  // What lies behind the end may be what a longer text left.
  text->resize(text->capacity());
  WipeBytes(text->data(), text->size());
  text->clear();
}

absl::StatusOr<Secret> Secret::FromBytes(absl::string_view bytes) {
  if (bytes.empty()) return absl::InvalidArgumentError("the secret is empty");
  if (bytes.size() > kMaxSecretBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the secret has ", bytes.size(), " bytes; at most ", kMaxSecretBytes, " are taken"));
  }
  return Secret(std::shared_ptr<const std::string>(new std::string(bytes), [](const std::string* last) {
    WipeString(const_cast<std::string*>(last));
    delete last;
  }));
}

absl::StatusOr<Secret> Secret::FromBase64(absl::string_view text) {
  std::string bytes;
  const bool valid = absl::Base64Unescape(text, &bytes);
  absl::StatusOr<Secret> secret =
      valid ? FromBytes(bytes) : absl::InvalidArgumentError("the secret is not in base64");
  WipeString(&bytes);
  return secret;
}

}  // namespace berth
