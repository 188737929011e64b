#include "control/berth_nbd/option_list.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace berth::control {
namespace {

// Takes what is before the next single comma off the front of `text`, and that comma.
std::string TakePart(absl::string_view* text) {
  std::string part;
  while (!text->empty()) {
    const char next = text->front();
    text->remove_prefix(1);
    if (next == ',') {
      if (text->empty() || text->front() != ',') break;
      text->remove_prefix(1);
    }
    part.push_back(next);
  }
  return part;
}

}  // namespace

absl::StatusOr<OptionList> ParseOptionList(absl::string_view text, absl::string_view implied_key) {
  if (text.size() > kMaxOptionListSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("the list has ", text.size(), " bytes; at most ", kMaxOptionListSize, " are read"));
  }
  OptionList list;
  while (!text.empty()) {
    if (list.size() == kMaxListedOptions) {
      return absl::InvalidArgumentError(
          absl::StrCat("the list has more than ", kMaxListedOptions, " options"));
    }
    const std::string part = TakePart(&text);
    const size_t equals = part.find('=');
    if (equals != std::string::npos) {
      list.emplace_back(part.substr(0, equals), part.substr(equals + 1));
    } else if (list.empty() && !implied_key.empty()) {
      list.emplace_back(std::string(implied_key), part);
    } else {
      list.emplace_back(part, "on");
    }
    if (list.back().first.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("there is an option without a name near '",
                                                     part.substr(0, 200), "'; write NAME=VALUE"));
    }
  }
  return list;
}

}  // namespace berth::control
