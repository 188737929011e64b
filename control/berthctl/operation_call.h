// Calls that are operations on the server: with a progress bar, and Ctrl-C cancels the work.
#ifndef BERTH_CONTROL_BERTHCTL_OPERATION_CALL_H_
#define BERTH_CONTROL_BERTHCTL_OPERATION_CALL_H_

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/time/time.h"
#include "berth/v1/operations.pb.h"
#include "control/berthctl/exit_code.h"
#include "control/berthctl/server.h"
#include "grpcpp/client_context.h"

namespace berth::berthctl {

// A name that nobody else has: `prefix` and some random digits.
std::string NewOperationName(const std::string& prefix);

// Runs `rpc`, whose request has `operation` as its operation_name, and shows its progress. SIGINT, SIGTERM
// and SIGHUP cancel the operation; a second one ends berthctl at once. Where the call fails, says why on the
// console. Takes the signals while it runs; one at a time in a process. `rpc` is called on another thread.
ExitCode CallAsOperation(Server& server, const std::string& what, const std::string& operation,
                         absl::FunctionRef<grpc::Status(grpc::ClientContext*)> rpc, absl::Duration timeout);

// Watches until the operation has ended, which it then is in `*end`. `seen` is called with each answer of the
// server. `context` may be cancelled from elsewhere.
grpc::Status WatchToTheEnd(Server& server, const std::string& operation, grpc::ClientContext* context,
                           absl::FunctionRef<void(const v1::Operation&)> seen, v1::Operation* end);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_OPERATION_CALL_H_
