#include "nbd/protocol_string.h"

#include <cstdint>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace berth::nbd {
namespace {

constexpr size_t kQuotedSize = 80;

bool IsContinuation(char byte) { return (static_cast<uint8_t>(byte) & 0xc0) == 0x80; }

// Bytes of the UTF-8 character that `text`, not empty, begins with; 0 where it begins with none. Overlong
// forms, surrogates and values past U+10FFFF are none.
size_t CharacterSize(absl::string_view text) {
  const auto first = static_cast<uint8_t>(text[0]);
  if (first < 0x80) return 1;
  const size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < size) return 0;
  for (size_t i = 1; i < size; ++i) {
    if (!IsContinuation(text[i])) return 0;
  }
  const auto second = static_cast<uint8_t>(text[1]);
  if (first == 0xe0 && second < 0xa0) return 0;
  if (first == 0xed && second > 0x9f) return 0;
  if (first == 0xf0 && second < 0x90) return 0;
  if (first == 0xf4 && second > 0x8f) return 0;
  return size;
}

}  // namespace

bool IsProtocolString(absl::string_view text) {
  while (!text.empty()) {
    const size_t size = CharacterSize(text);
    if (size == 0 || text[0] == '\0') return false;
    text.remove_prefix(size);
  }
  return true;
}

absl::string_view CutAtCharacter(absl::string_view text, size_t size) {
  if (text.size() <= size) return text;
  while (size > 0 && IsContinuation(text[size])) --size;
  return text.substr(0, size);
}

std::string Quoted(absl::string_view text) {
  const absl::string_view cut = CutAtCharacter(text, kQuotedSize);
  const std::string escaped = IsProtocolString(cut) ? absl::Utf8SafeCHexEscape(cut) : absl::CHexEscape(cut);
  return absl::StrCat("'", escaped, cut.size() < text.size() ? "..." : "", "'");
}

}  // namespace berth::nbd
