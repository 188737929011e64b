#include "control/utf8.h"

#include <utility>

namespace berth::control {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";
constexpr absl::string_view kEllipsis = "…";

// What the second byte may be: narrower after four of the first bytes, which would else begin a surrogate, an
// overlong form, or what lies behind the last character.
std::pair<unsigned char, unsigned char> SecondByte(unsigned char first) {
  switch (first) {
    case 0xE0:
      return {0xA0, 0xBF};
    case 0xED:
      return {0x80, 0x9F};
    case 0xF0:
      return {0x90, 0xBF};
    case 0xF4:
      return {0x80, 0x8F};
    default:
      return {0x80, 0xBF};
  }
}

// The length of the character that `text`, which is not empty, begins with; 0 where it is none.
size_t CharacterBytes(absl::string_view text) {
  const auto byte = [text](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : static_cast<unsigned char>(0);
  };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  const auto [low, high] = SecondByte(first);
  if (byte(1) < low || byte(1) > high) return 0;
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  for (size_t i = 2; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

}  // namespace

std::string ValidUtf8(absl::string_view text, size_t max_bytes) {
  std::string valid;
  size_t room_for_ellipsis = 0;  // The most of `valid` that leaves it.
  while (!text.empty()) {
    const size_t length = CharacterBytes(text);
    const absl::string_view next = length == 0 ? kReplacement : text.substr(0, length);
    if (valid.size() + next.size() > max_bytes) {
      valid.resize(room_for_ellipsis);
      if (kEllipsis.size() <= max_bytes) valid.append(kEllipsis.data(), kEllipsis.size());
      return valid;
    }
    valid.append(next.data(), next.size());
    if (max_bytes >= kEllipsis.size() && valid.size() <= max_bytes - kEllipsis.size()) {
      room_for_ellipsis = valid.size();
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return valid;
}

}  // namespace berth::control
