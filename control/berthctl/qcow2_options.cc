#include "control/berthctl/qcow2_options.h"

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/size_text.h"
#include "google/protobuf/descriptor.h"

namespace berth::berthctl {
namespace {

using Set = std::function<absl::Status(const std::string& value)>;

Set Text(std::function<void(const std::string&)> set) {
  return [set = std::move(set)](const std::string& value) {
    set(value);
    return absl::OkStatus();
  };
}

Set Switch(std::function<void(bool)> set) {
  return [set = std::move(set)](const std::string& value) {
    if (value != "on" && value != "off") {
      return absl::InvalidArgumentError(absl::StrCat("'", value, "' is none of on and off"));
    }
    set(value == "on");
    return absl::OkStatus();
  };
}

Set Number(std::function<void(uint32_t)> set) {
  return [set = std::move(set)](const std::string& value) {
    const absl::StatusOr<uint64_t> number = ParseSize(value);
    if (!number.ok()) return number.status();
    if (*number > std::numeric_limits<uint32_t>::max()) {
      return absl::InvalidArgumentError(absl::StrCat("'", value, "' is too large"));
    }
    set(static_cast<uint32_t>(*number));
    return absl::OkStatus();
  };
}

Set Enum(const google::protobuf::EnumDescriptor* type, std::function<void(int)> set) {
  return [type, set = std::move(set)](const std::string& value) {
    for (int i = 1; i < type->value_count(); ++i) {
      const int number = type->value(i)->number();
      if (EnumName(type, number) != value) continue;
      set(number);
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat("'", value, "' is none of ", absl::StrJoin(EnumNames(type), ", ")));
  };
}

std::vector<std::pair<std::string, Set>> Options(v1::Qcow2Options* options) {
  return {
      {"compat", Text([options](const std::string& value) {
         options->set_compat(value == "v2" ? "0.10" : value == "v3" ? "1.1" : value);
       })},
      {"cluster_size", Number([options](uint32_t bytes) { options->set_cluster_size_bytes(bytes); })},
      {"refcount_bits", Number([options](uint32_t bits) { options->set_refcount_bits(bits); })},
      {"lazy_refcounts", Switch([options](bool on) { options->set_lazy_refcounts(on); })},
      {"extended_l2", Switch([options](bool on) { options->set_extended_l2(on); })},
      {"compression_type",
       Enum(v1::CompressionType_descriptor(),
            [options](int type) { options->set_compression_type(static_cast<v1::CompressionType>(type)); })},
      {"backing_file", Text([options](const std::string& name) { options->set_backing_file(name); })},
      {"backing_fmt",
       Enum(v1::ImageFormat_descriptor(),
            [options](int format) { options->set_backing_format(static_cast<v1::ImageFormat>(format)); })},
      {"data_file", Text([options](const std::string& name) { options->set_data_file(name); })},
      {"data_file_raw", Switch([options](bool on) { options->set_data_file_raw(on); })},
      {"preallocation",
       Enum(v1::Preallocation_descriptor(),
            [options](int mode) { options->set_preallocation(static_cast<v1::Preallocation>(mode)); })},
  };
}

// At single commas; two stand for one.
std::vector<std::string> Split(absl::string_view text) {
  std::vector<std::string> parts = {""};
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != ',') {
      parts.back() += text[i];
    } else if (i + 1 < text.size() && text[i + 1] == ',') {
      parts.back() += ',';
      ++i;
    } else {
      parts.emplace_back();
    }
  }
  return parts;
}

}  // namespace

absl::Status ParseQcow2Options(absl::string_view text, v1::Qcow2Options* options) {
  const std::vector<std::pair<std::string, Set>> known = Options(options);
  for (const std::string& part : Split(text)) {
    const size_t equals = part.find('=');
    const std::string name = part.substr(0, equals);
    const Set* set = nullptr;
    for (const auto& [known_name, known_set] : known) {
      if (known_name == name) set = &known_set;
    }
    if (set == nullptr || equals == std::string::npos) {
      std::vector<std::string> names;
      for (const auto& [known_name, known_set] : known) names.push_back(known_name);
      return absl::InvalidArgumentError(
          absl::StrCat("'", part, "' is no NAME=VALUE with a name of these: ", absl::StrJoin(names, ", ")));
    }
    if (absl::Status status = (*set)(part.substr(equals + 1)); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace berth::berthctl
