// OptionTree: qemu's dotted options (`file.driver=file,file.filename=disk`), or the same in JSON, as a tree.
#ifndef BERTH_CONTROL_BERTH_NBD_OPTION_TREE_H_
#define BERTH_CONTROL_BERTH_NBD_OPTION_TREE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace berth::control {

// A value. A node has text, children, or neither (JSON's null). What is read from it is remembered, so that
// what nobody asked for can be refused; the reading functions are for one thread.
class OptionTree {
 public:
  static constexpr int kMaxDepth = 32;

  // `text` is JSON where it begins with `{` or `json:`, else a list of options, whose first part may be the
  // value of `implied_key`. INVALID_ARGUMENT with what is wrong.
  static absl::StatusOr<OptionTree> Parse(absl::string_view text, absl::string_view implied_key);

  // Of a node that is there. INVALID_ARGUMENT names the key where it is a text and should not be one, or the
  // other way round, or where its value is not allowed.
  absl::StatusOr<std::optional<std::string>> Text(const std::string& key) const;
  absl::StatusOr<bool> Switch(const std::string& key, bool otherwise) const;
  // With a suffix k, M, G, T for powers of 1024.
  absl::StatusOr<std::optional<uint64_t>> Bytes(const std::string& key) const;
  // Null where there is no such child, or where it is a text.
  const OptionTree* Child(const std::string& key) const;
  bool IsNull() const { return children_.empty() && !text_.has_value(); }
  const std::optional<std::string>& text() const { return text_; }
  const std::map<std::string, OptionTree>& children() const { return children_; }

  // INVALID_ARGUMENT names the first child that nobody asked for.
  absl::Status CheckAllRead() const;
  // With the path from the root, for messages.
  std::string Name(absl::string_view key) const;

 private:
  absl::Status Put(absl::string_view key, std::string value);
  void NameChildren();

  std::optional<std::string> text_;
  std::map<std::string, OptionTree> children_;
  std::string path_;
  mutable std::set<std::string> read_;

  friend struct JsonReader;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_OPTION_TREE_H_
