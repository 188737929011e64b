// What the server's errors mean to the person at the shell.
#ifndef BERTH_CONTROL_BERTHCTL_ERROR_TEXT_H_
#define BERTH_CONTROL_BERTHCTL_ERROR_TEXT_H_

#include <string>

#include "absl/strings/string_view.h"
#include "control/berthctl/exit_code.h"
#include "grpcpp/support/status.h"

namespace berth::berthctl {

ExitCode ExitCodeOf(grpc::StatusCode code);

// One line: `what` was tried ("export create disk"), what the server says, what its google.rpc details add,
// the reason for programs in brackets, and the way out where berthctl has an option for it.
std::string ErrorText(absl::string_view what, const grpc::Status& status);

// Why nobody answers at `endpoint` ("unix:PATH" or "HOST:PORT"), and what to do; `detail` is what gRPC says.
std::string UnreachableText(absl::string_view endpoint, absl::string_view detail);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_ERROR_TEXT_H_
