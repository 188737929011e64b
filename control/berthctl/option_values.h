// Option values that are no plain text: sizes, durations, and the API's enumerations by their short names.
#ifndef BERTH_CONTROL_BERTHCTL_OPTION_VALUES_H_
#define BERTH_CONTROL_BERTHCTL_OPTION_VALUES_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/time/time.h"
#include "berth/v1/exports.pb.h"
#include "google/protobuf/descriptor.h"

namespace berth::berthctl {

// "10G" and its like. `set` is called when the option is given.
CLI::Option* AddSize(CLI::App& app, const std::string& name, const std::string& help,
                     std::function<void(uint64_t)> set);

// "30", "1.5s", "2m": positive, seconds where there is no unit.
CLI::Option* AddDuration(CLI::App& app, const std::string& name, const std::string& help,
                         std::function<void(absl::Duration)> set);

// The values of `type` without their common prefix and in lower case: "raw" for IMAGE_FORMAT_RAW.
CLI::Option* AddEnum(CLI::App& app, const std::string& name, const std::string& help,
                     const google::protobuf::EnumDescriptor* type, std::function<void(int)> set);

// The short name of a value, "unknown" for one that this berthctl does not know.
std::string EnumName(const google::protobuf::EnumDescriptor* type, int number);
// All but UNSPECIFIED.
std::vector<std::string> EnumNames(const google::protobuf::EnumDescriptor* type);

// Null where an option of this long name ("--format") takes no enumeration.
const google::protobuf::EnumDescriptor* EnumOfOption(const std::string& long_name);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_OPTION_VALUES_H_
