// Strings of the NBD protocol (proto.md, "Conventions").
#ifndef BERTH_NBD_PROTOCOL_STRING_H_
#define BERTH_NBD_PROTOCOL_STRING_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace berth::nbd {

// Whether `text` is UTF-8 without NUL. Its length is the caller's matter.
bool IsProtocolString(absl::string_view text);

// The longest beginning of `text`, which is UTF-8, that has at most `size` bytes and cuts no character.
absl::string_view CutAtCharacter(absl::string_view text, size_t size);

// `text` in quotes for a message to a person, who must not be shown control characters, broken UTF-8 or 4,096
// bytes: escaped, and cut after some eighty bytes.
std::string Quoted(absl::string_view text);

}  // namespace berth::nbd

#endif  // BERTH_NBD_PROTOCOL_STRING_H_
