#include "control/berth_nbd/one_line.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace berth::control {

std::string OneLine(absl::string_view text) {
  std::string line;
  for (const char next : text) {
    const unsigned char byte = static_cast<unsigned char>(next);
    if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppend(&line, absl::CHexEscape(absl::string_view(&next, 1)));
    } else {
      line.push_back(next);
    }
  }
  return line;
}

}  // namespace berth::control
