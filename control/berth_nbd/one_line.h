// OneLine: text from elsewhere, as a terminal may see it.
#ifndef BERTH_CONTROL_BERTH_NBD_ONE_LINE_H_
#define BERTH_CONTROL_BERTH_NBD_ONE_LINE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace berth::control {

// Control characters, a line's end above all, become \n or \x1b; UTF-8 stays. Pure.
std::string OneLine(absl::string_view text);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_ONE_LINE_H_
