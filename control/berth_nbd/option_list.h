// OptionList: qemu's `key=value,key=value` text.
#ifndef BERTH_CONTROL_BERTH_NBD_OPTION_LIST_H_
#define BERTH_CONTROL_BERTH_NBD_OPTION_LIST_H_

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace berth::control {

// In the order of the text; a key may come more than once.
using OptionList = std::vector<std::pair<std::string, std::string>>;

inline constexpr size_t kMaxOptionListSize = 64 << 10;
inline constexpr size_t kMaxListedOptions = 1024;

// A comma inside a value is written twice. A first part without `=` is the value of `implied_key`, where that
// is not empty; any other is a key that is `on`. INVALID_ARGUMENT for an empty key, or too much of it. Pure.
absl::StatusOr<OptionList> ParseOptionList(absl::string_view text, absl::string_view implied_key);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_OPTION_LIST_H_
