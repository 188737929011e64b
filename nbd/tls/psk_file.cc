#include "nbd/tls/psk_file.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace berth::nbd {
namespace {

bool IsHex(absl::string_view text) {
  for (const char c : text) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return false;
  }
  return text.size() % 2 == 0;
}

absl::Status LineError(size_t line, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", problem));
}

}  // namespace

absl::StatusOr<PskKeys> ParsePskFile(absl::string_view text) {
  PskKeys keys;
  size_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripTrailingAsciiWhitespace(line);
    if (line.empty()) continue;
    const size_t colon = line.find(':');
    if (colon == absl::string_view::npos) return LineError(number, "not of the form USER:HEXKEY");
    std::string user(line.substr(0, colon));
    const absl::string_view hex = line.substr(colon + 1);
    if (!user.empty() && user[0] == '#') {
      if (!IsHex(absl::string_view(user).substr(1))) {
        return LineError(number, "a name that begins with # is written in hexadecimal digits");
      }
      user = absl::HexStringToBytes(absl::string_view(user).substr(1));
    }
    if (user.empty() || user.size() > kMaxPskUserSize || user.find('\0') != std::string::npos) {
      return LineError(number,
                       absl::StrCat("a user's name has 1 to ", kMaxPskUserSize, " bytes, none of them zero"));
    }
    if (!IsHex(hex)) return LineError(number, "the key is not made of pairs of hexadecimal digits");
    const std::string key = absl::HexStringToBytes(hex);
    if (key.size() < kMinPskSize || key.size() > kMaxPskSize) {
      return LineError(number, absl::StrCat("the key has ", key.size(), " bytes, and ", kMinPskSize, " to ",
                                            kMaxPskSize, " are allowed"));
    }
    if (!keys.emplace(std::move(user), std::vector<uint8_t>(key.begin(), key.end())).second) {
      return LineError(number, "the user has a key already, on a line above");
    }
  }
  if (keys.empty()) return absl::InvalidArgumentError("there is no key in it");
  return keys;
}

}  // namespace berth::nbd
