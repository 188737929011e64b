// Secret: the bytes that open an encrypted image: a passphrase, or what a key file holds.
//
// A value. Copies share the bytes, which are wiped when the last copy is gone. It has no operator<<, and
// nothing in an error's text comes from it. What a caller made it from is the caller's to wipe (WipeString).
//
// A secret is all of the bytes it was given, a newline at the end too, as qemu and cryptsetup's key files
// have it.
//
// Thread-safe, as it does not change.
#ifndef BERTH_IMAGE_SECRET_SECRET_H_
#define BERTH_IMAGE_SECRET_SECRET_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace berth {

inline constexpr size_t kMaxSecretBytes = 65'536;

class Secret {
 public:
  // None.
  Secret() = default;

  // INVALID_ARGUMENT for one without bytes, or of more than kMaxSecretBytes.
  static absl::StatusOr<Secret> FromBytes(absl::string_view bytes);

  // Of `text` in base64, white space left out: what qemu calls format=base64. INVALID_ARGUMENT where it is
  // none.
  static absl::StatusOr<Secret> FromBase64(absl::string_view text);

  // Whether there is none.
  bool empty() const { return bytes_ == nullptr; }
  // Valid for as long as a copy of this lives.
  absl::string_view bytes() const {
    return bytes_ == nullptr ? absl::string_view() : absl::string_view(*bytes_);
  }

 private:
  explicit Secret(std::shared_ptr<const std::string> bytes) : bytes_(std::move(bytes)) {}

  std::shared_ptr<const std::string> bytes_;
};

// Overwrites what `text` has, in a way that the compiler keeps, and empties it.
void WipeString(std::string* text);
void WipeBytes(void* bytes, size_t size);

}  // namespace berth

#endif  // BERTH_IMAGE_SECRET_SECRET_H_
