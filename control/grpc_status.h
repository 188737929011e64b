// From absl::Status, with the payloads of status_details, to what a gRPC client receives.
#ifndef BERTH_CONTROL_GRPC_STATUS_H_
#define BERTH_CONTROL_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace berth::control {

// Payloads whose key is a type URL become details (grpc-status-details-bin). A message or details too long
// for HTTP/2 trailers are cut, so that the code always arrives.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace berth::control

#endif  // BERTH_CONTROL_GRPC_STATUS_H_
