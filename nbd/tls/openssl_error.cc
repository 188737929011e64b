#include "nbd/tls/openssl_error.h"

#include <openssl/err.h>

#include "absl/strings/str_cat.h"

namespace berth::nbd {

std::string TakeOpensslErrors() {
  std::string text;
  const char* data = nullptr;
  int flags = 0;
  while (const unsigned long code = ERR_get_error_all(nullptr, nullptr, nullptr, &data, &flags)) {
    const char* reason = ERR_reason_error_string(code);
    absl::StrAppend(&text, text.empty() ? "" : ", ",
                    reason == nullptr ? absl::StrCat("error ", absl::Hex(code)) : std::string(reason));
    if (data != nullptr && *data != '\0' && (flags & ERR_TXT_STRING) != 0)
      absl::StrAppend(&text, " (", data, ")");
  }
  return text.empty() ? "the TLS library gives no reason" : text;
}

}  // namespace berth::nbd
