// What every method of every service begins and ends with.
#ifndef BERTH_CONTROL_CALL_H_
#define BERTH_CONTROL_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <algorithm>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "control/grpc_status.h"

namespace berth::control {

// Until when a call may wait for its turn: the client's deadline, or `at_most` from now.
inline absl::Time TurnDeadline(const grpc::ServerContext& context, absl::Duration at_most) {
  return std::min(absl::FromChrono(context.deadline()), absl::Now() + at_most);
}

template <typename Answer>
grpc::Status Reply(absl::StatusOr<Answer> result, Answer* answer) {
  if (!result.ok()) return ToGrpcStatus(result.status());
  *answer = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace berth::control

#endif  // BERTH_CONTROL_CALL_H_
