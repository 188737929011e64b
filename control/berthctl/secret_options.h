// The options that say where the secret of an encrypted image comes from.
#ifndef BERTH_CONTROL_BERTHCTL_SECRET_OPTIONS_H_
#define BERTH_CONTROL_BERTHCTL_SECRET_OPTIONS_H_

#include <functional>
#include <string>

#include "CLI/App.hpp"
#include "berth/v1/exports.pb.h"

namespace berth::berthctl {

// --secret-file and --secret-fd; `secret` is called where one is given. The descriptor is read when the
// command line is.
void AddSecret(CLI::App& command, const std::function<v1::Secret*()>& secret);

// "file /run/keys/vm", for people.
std::string SecretText(const v1::Secret& secret);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_SECRET_OPTIONS_H_
