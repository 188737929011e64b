#include "control/berth_nbd/option_tree.h"

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "control/berth_nbd/option_list.h"
#include "nlohmann/json.hpp"

namespace berth::control {

// Recursion is bounded by kMaxDepth, which the text is held against while it is parsed.
struct JsonReader {
  static std::string Scalar(const nlohmann::json& value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
    return value.dump();
  }

  static OptionTree Read(const nlohmann::json& value) {
    OptionTree tree;
    if (value.is_object()) {
      for (const auto& [key, child] : value.items()) {
        // Dotted keys may stand in JSON too.
        OptionTree* at = &tree;
        for (absl::string_view part : absl::StrSplit(key, '.')) at = &at->children_[std::string(part)];
        *at = Read(child);
      }
    } else if (value.is_array()) {
      for (size_t i = 0; i < value.size(); ++i) tree.children_[absl::StrCat(i)] = Read(value[i]);
    } else if (!value.is_null()) {
      tree.text_ = Scalar(value);
    }
    return tree;
  }

  static absl::StatusOr<OptionTree> Parse(absl::string_view text) {
    bool too_deep = false;
    const auto limit = [&too_deep](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
      too_deep |= depth > OptionTree::kMaxDepth;
      return !too_deep;
    };
    const nlohmann::json value =
        nlohmann::json::parse(text.begin(), text.end(), limit, /*allow_exceptions=*/false);
    if (too_deep) {
      return absl::InvalidArgumentError(
          absl::StrCat("the JSON is nested more than ", OptionTree::kMaxDepth, " deep"));
    }
    if (!value.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", text.substr(0, 200), "' is not JSON; it must be an object, {\"driver\": \"raw\", …}"));
    }
    return Read(value);
  }
};

absl::StatusOr<OptionTree> OptionTree::Parse(absl::string_view text, absl::string_view implied_key) {
  OptionTree tree;
  const bool is_json = absl::ConsumePrefix(&text, "json:") || absl::StartsWith(text, "{");
  if (is_json) {
    if (text.size() > kMaxOptionListSize) {
      return absl::InvalidArgumentError(
          absl::StrCat("the JSON has ", text.size(), " bytes; at most ", kMaxOptionListSize, " are read"));
    }
    absl::StatusOr<OptionTree> read = JsonReader::Parse(text);
    if (!read.ok()) return read.status();
    tree = *std::move(read);
  } else {
    absl::StatusOr<OptionList> list = ParseOptionList(text, implied_key);
    if (!list.ok()) return list.status();
    for (auto& [key, value] : *list) {
      if (absl::Status status = tree.Put(key, std::move(value)); !status.ok()) return status;
    }
  }
  tree.NameChildren();
  return tree;
}

absl::Status OptionTree::Put(absl::string_view key, std::string value) {
  const std::vector<std::string> parts = absl::StrSplit(key, '.');
  if (parts.size() > kMaxDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", key.substr(0, 200), "' has more than ", kMaxDepth, " parts"));
  }
  OptionTree* at = this;
  for (const std::string& part : parts) {
    if (part.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("'", key.substr(0, 200), "' has an empty part"));
    }
    at = &at->children_[part];
  }
  at->text_ = std::move(value);
  return absl::OkStatus();
}

void OptionTree::NameChildren() {
  for (auto& [key, child] : children_) {
    child.path_ = Name(key);
    child.NameChildren();
  }
}

std::string OptionTree::Name(absl::string_view key) const {
  return path_.empty() ? std::string(key) : absl::StrCat(path_, ".", key);
}

absl::StatusOr<std::optional<std::string>> OptionTree::Text(const std::string& key) const {
  read_.insert(key);
  const auto found = children_.find(key);
  if (found == children_.end() || found->second.IsNull()) return std::optional<std::string>();
  if (!found->second.children_.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(Name(key), " must be a value, and has options of its own"));
  }
  return found->second.text_;
}

absl::StatusOr<bool> OptionTree::Switch(const std::string& key, bool otherwise) const {
  absl::StatusOr<std::optional<std::string>> text = Text(key);
  if (!text.ok()) return text.status();
  if (!text->has_value()) return otherwise;
  for (absl::string_view on : {"on", "yes", "true", "y"}) {
    if (**text == on) return true;
  }
  for (absl::string_view off : {"off", "no", "false", "n"}) {
    if (**text == off) return false;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(Name(key), " is '", (*text)->substr(0, 200), "'; it must be on or off"));
}

absl::StatusOr<std::optional<uint64_t>> OptionTree::Bytes(const std::string& key) const {
  absl::StatusOr<std::optional<std::string>> text = Text(key);
  if (!text.ok()) return text.status();
  if (!text->has_value()) return std::optional<uint64_t>();
  absl::string_view number = **text;
  int shift = 0;
  constexpr absl::string_view kSuffixes = "bkmgtpe";
  if (!number.empty()) {
    const size_t suffix = kSuffixes.find(static_cast<char>(number.back() | 0x20));
    if (suffix != absl::string_view::npos) {
      shift = static_cast<int>(suffix) * 10;
      number.remove_suffix(1);
    }
  }
  uint64_t value;
  if (!absl::SimpleAtoi(number, &value) || value > (uint64_t{INT64_MAX} >> shift)) {
    return absl::InvalidArgumentError(absl::StrCat(Name(key), " is '", (*text)->substr(0, 200),
                                                   "'; it must be a number of bytes, such as 4096 or 1M"));
  }
  return std::optional<uint64_t>(value << shift);
}

const OptionTree* OptionTree::Child(const std::string& key) const {
  const auto found = children_.find(key);
  if (found == children_.end() || found->second.text_.has_value()) return nullptr;
  read_.insert(key);
  return &found->second;
}

absl::Status OptionTree::CheckAllRead() const {
  for (const auto& [key, child] : children_) {
    if (read_.find(key) == read_.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("there is no option ", Name(key).substr(0, 200), " here"));
    }
  }
  return absl::OkStatus();
}

}  // namespace berth::control
