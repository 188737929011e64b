// Bytes as the specification writes them, for tests.
#ifndef BERTH_NBD_CLIENT_HEX_BYTES_H_
#define BERTH_NBD_CLIENT_HEX_BYTES_H_

#include <cstdint>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"

namespace berth::nbd {

// The bytes of hexadecimal digits; spaces are for the reader.
inline std::string Hex(absl::string_view digits) {
  return absl::HexStringToBytes(absl::StrReplaceAll(digits, {{" ", ""}}));
}

inline std::string U16(uint16_t value) { return Hex(absl::StrCat(absl::Hex(value, absl::kZeroPad4))); }
inline std::string U32(uint32_t value) { return Hex(absl::StrCat(absl::Hex(value, absl::kZeroPad8))); }
inline std::string U64(uint64_t value) { return Hex(absl::StrCat(absl::Hex(value, absl::kZeroPad16))); }
inline std::string WithLength(absl::string_view text) {
  return absl::StrCat(U32(static_cast<uint32_t>(text.size())), text);
}

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_HEX_BYTES_H_
