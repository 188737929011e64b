// Text from outside as protobuf takes it: a parser refuses a message whose strings are not UTF-8, and with it
// everything else that the message says.
#ifndef BERTH_CONTROL_UTF8_H_
#define BERTH_CONTROL_UTF8_H_

#include <cstddef>
#include <limits>
#include <string>

#include "absl/strings/string_view.h"

namespace berth::control {

// `text` with U+FFFD for each byte that is no part of a character (Unicode 15, table 3-7). Where that is more
// than `max_bytes` it is cut between two characters, and ends in "…" within them.
std::string ValidUtf8(absl::string_view text, size_t max_bytes = std::numeric_limits<size_t>::max());

}  // namespace berth::control

#endif  // BERTH_CONTROL_UTF8_H_
