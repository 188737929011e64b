#include "control/berthctl/option_values.h"

#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "control/berthctl/size_text.h"

namespace berth::berthctl {
namespace {

// "IMAGE_FORMAT_" for ImageFormat: what the value of number 0 is called, without "UNSPECIFIED".
std::string Prefix(const google::protobuf::EnumDescriptor* type) {
  return std::string(absl::StripSuffix(type->FindValueByNumber(0)->name(), "UNSPECIFIED"));
}

std::string ShortName(const google::protobuf::EnumValueDescriptor& value) {
  std::string name = absl::AsciiStrToLower(absl::StripPrefix(value.name(), Prefix(value.type())));
  for (char& c : name) c = c == '_' ? '-' : c;
  return name;
}

}  // namespace

CLI::Option* AddSize(CLI::App& app, const std::string& name, const std::string& help,
                     std::function<void(uint64_t)> set) {
  const auto parse = [set = std::move(set)](const std::string& text) {
    const absl::StatusOr<uint64_t> size = ParseSize(text);
    if (!size.ok()) throw CLI::ValidationError(std::string(size.status().message()));
    set(*size);
  };
  return app.add_option_function<std::string>(name, parse, help)->type_name("SIZE");
}

CLI::Option* AddDuration(CLI::App& app, const std::string& name, const std::string& help,
                         std::function<void(absl::Duration)> set) {
  const auto parse = [set = std::move(set)](const std::string& text) {
    absl::Duration duration;
    const bool plain = !text.empty() && absl::ascii_isdigit(static_cast<unsigned char>(text.back()));
    if (!absl::ParseDuration(plain ? absl::StrCat(text, "s") : text, &duration) ||
        duration <= absl::ZeroDuration() || duration > absl::Hours(24 * 365)) {
      throw CLI::ValidationError(
          absl::StrCat("duration '", text, "' is none above zero and up to a year, as in 30, 1.5s or 2m"));
    }
    set(duration);
  };
  return app.add_option_function<std::string>(name, parse, help)->type_name("DURATION");
}

CLI::Option* AddEnum(CLI::App& app, const std::string& name, const std::string& help,
                     const google::protobuf::EnumDescriptor* type, std::function<void(int)> set) {
  const std::string names = absl::StrJoin(EnumNames(type), ", ");
  const auto parse = [type, names, set = std::move(set)](const std::string& text) {
    for (int i = 1; i < type->value_count(); ++i) {
      if (ShortName(*type->value(i)) == text) return set(type->value(i)->number());
    }
    throw CLI::ValidationError(absl::StrCat("'", text, "' is none of ", names));
  };
  return app.add_option_function<std::string>(name, parse, absl::StrCat(help, ": ", names))
      ->type_name("NAME");
}

std::string EnumName(const google::protobuf::EnumDescriptor* type, int number) {
  const google::protobuf::EnumValueDescriptor* value = type->FindValueByNumber(number);
  return value == nullptr ? "unknown" : ShortName(*value);
}

std::vector<std::string> EnumNames(const google::protobuf::EnumDescriptor* type) {
  std::vector<std::string> names;
  for (int i = 1; i < type->value_count(); ++i) names.push_back(ShortName(*type->value(i)));
  return names;
}

const google::protobuf::EnumDescriptor* EnumOfOption(const std::string& long_name) {
  if (long_name == "--format" || long_name == "--backing-format") return v1::ImageFormat_descriptor();
  if (long_name == "--cache") return v1::CacheMode_descriptor();
  if (long_name == "--discard") return v1::DiscardMode_descriptor();
  return nullptr;
}

}  // namespace berth::berthctl
