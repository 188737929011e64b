// Files of pre-shared keys in GnuTLS's form: a line `USER:HEXKEY` for each user, as psktool writes them, or
// `#HEXUSER:HEXKEY` for a user whose name is not plain text.
#ifndef BERTH_NBD_TLS_PSK_FILE_H_
#define BERTH_NBD_TLS_PSK_FILE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace berth::nbd {

// The key of each user.
using PskKeys = std::map<std::string, std::vector<uint8_t>, std::less<>>;

// Of a key, in bytes: fewer can be guessed, and more the TLS library does not take.
inline constexpr size_t kMinPskSize = 16;
inline constexpr size_t kMaxPskSize = 512;
// Of a user's name, in bytes.
inline constexpr size_t kMaxPskUserSize = 255;

// `text` is the file's content. INVALID_ARGUMENT names the line and what is wrong with it, never a key.
absl::StatusOr<PskKeys> ParsePskFile(absl::string_view text);

}  // namespace berth::nbd

#endif  // BERTH_NBD_TLS_PSK_FILE_H_
