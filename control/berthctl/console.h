// Console: where berthctl reads and writes.
#ifndef BERTH_CONTROL_BERTHCTL_CONSOLE_H_
#define BERTH_CONTROL_BERTHCTL_CONSOLE_H_

#include <cstddef>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace google::protobuf {
class Message;
}  // namespace google::protobuf

namespace berth::berthctl {

struct Console {
  std::ostream& out;
  std::ostream& err;
  bool json = false;
  bool in_is_terminal = false;
  bool out_is_terminal = false;
  bool err_is_terminal = false;
};

// One JSON document with the field names of the .proto files; every field is there, but messages that are not
// set. On a line of its own where `compact`.
void PrintJson(std::ostream& out, const google::protobuf::Message& message, bool compact = false);

// `text` on one line, and without what a terminal would take for a command.
std::string Printable(absl::string_view text);

// A table with columns that line up.
class Table {
 public:
  // The columns from `first_number` to `last_number` hold figures, which go to the right.
  explicit Table(std::vector<std::string> header, size_t first_number = 1, size_t last_number = 0);

  void Add(std::vector<std::string> row);
  std::vector<std::string> Lines() const;
  void Print(std::ostream& out) const;

 private:
  const size_t first_number_;
  const size_t last_number_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_CONSOLE_H_
