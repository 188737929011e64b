#include "control/berthctl/console.h"

#include <algorithm>
#include <utility>

#include "google/protobuf/message.h"
#include "google/protobuf/util/json_util.h"

namespace berth::berthctl {

void PrintJson(std::ostream& out, const google::protobuf::Message& message, bool compact) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = !compact;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  // Fails only for an Any of an unknown type, and the API has none.
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) text = "{}";
  if (text.empty() || text.back() != '\n') text += '\n';
  out << text << std::flush;
}

std::string Printable(absl::string_view text) {
  std::string clean(text);
  for (char& c : clean) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) c = ' ';
  }
  return clean;
}

Table::Table(std::vector<std::string> header, size_t first_number, size_t last_number)
    : first_number_(first_number), last_number_(last_number) {
  rows_.push_back(std::move(header));
}

void Table::Add(std::vector<std::string> row) {
  for (std::string& cell : row) cell = Printable(cell);
  rows_.push_back(std::move(row));
}

std::vector<std::string> Table::Lines() const {
  std::vector<size_t> widths(rows_.front().size(), 0);
  for (const std::vector<std::string>& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::vector<std::string> lines;
  for (const std::vector<std::string>& row : rows_) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - row[i].size(), ' ');
      const bool number = i >= first_number_ && i <= last_number_;
      line += number ? padding + row[i] : row[i] + padding;
      if (i + 1 < row.size()) line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    lines.push_back(std::move(line));
  }
  return lines;
}

void Table::Print(std::ostream& out) const {
  for (const std::string& line : Lines()) out << line << '\n';
  out << std::flush;
}

}  // namespace berth::berthctl
