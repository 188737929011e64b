// Options that several commands have, for whatever request has the field that they set.
//
// The request lives as long as the command line: its options hold it.
#ifndef BERTH_CONTROL_BERTHCTL_REQUEST_OPTIONS_H_
#define BERTH_CONTROL_BERTHCTL_REQUEST_OPTIONS_H_

#include <functional>
#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "berth/v1/exports.pb.h"
#include "control/berthctl/option_values.h"

namespace berth::berthctl {

// The object that the command is about: "NAME", required. `argument` is "export" or "attachment".
template <typename Request>
void AddName(CLI::App& command, const std::string& argument, const std::string& help,
             const std::shared_ptr<Request>& request) {
  command
      .add_option_function<std::string>(
          argument, [request](const std::string& name) { request->set_name(name); }, help)
      ->required()
      ->type_name("NAME");
}

// --format; raw where it is left out. `holder` is what has the field, and lives as long as the command.
template <typename Holder>
void AddFormat(CLI::App& command, const std::shared_ptr<Holder>& holder) {
  holder->set_format(v1::IMAGE_FORMAT_RAW);
  AddEnum(command, "--format,-f", "Format (raw where it is left out)", v1::ImageFormat_descriptor(),
          [holder](int format) { holder->set_format(static_cast<v1::ImageFormat>(format)); });
}

// --backing-format. `holder` as for AddFormat().
template <typename Holder>
void AddBackingFormat(CLI::App& command, const std::shared_ptr<Holder>& holder) {
  AddEnum(command, "--backing-format",
          "Format of a qcow2 image's backing files that the image does not state",
          v1::ImageFormat_descriptor(),
          [holder](int format) { holder->set_backing_format(static_cast<v1::ImageFormat>(format)); });
}

template <typename Request>
void AddAllowShrink(CLI::App& command, const std::shared_ptr<Request>& request) {
  command.add_flag_callback(
      "--allow-shrink", [request] { request->set_allow_shrink(true); },
      "A smaller size is meant, and what lies beyond may go");
}

template <typename Request>
void AddAllowMissing(CLI::App& command, const std::shared_ptr<Request>& request) {
  command.add_flag_callback(
      "--allow-missing", [request] { request->set_allow_missing(true); }, "Succeed where there is none");
}

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_REQUEST_OPTIONS_H_
