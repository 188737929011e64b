#include "control/grpc_status.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "control/status_details.h"
#include "control/utf8.h"
#include "google/rpc/status.pb.h"

namespace berth::control {
namespace {

// A client accepts 8 KiB of trailers by default; the message travels twice (percent-encoded, and in the
// details, which are base64), hence the room.
constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxDetailsBytes = 3072;

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& result) {
  if (result.ok()) return grpc::Status::OK;
  // Errors from below that nobody can act on have none yet.
  const absl::Status status = WithReason(result, "FAILED");
  google::rpc::Status wire;
  wire.set_code(static_cast<int>(status.code()));
  wire.set_message(ValidUtf8(status.message(), kMaxMessageBytes));
  status.ForEachPayload([&wire](absl::string_view type_url, const absl::Cord& payload) {
    if (!absl::StartsWith(type_url, "type.googleapis.com/")) return;
    if (wire.ByteSizeLong() + payload.size() > kMaxDetailsBytes) return;
    auto* detail = wire.add_details();
    detail->set_type_url(std::string(type_url.data(), type_url.size()));
    detail->set_value(std::string(payload));
  });
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), wire.message(), wire.SerializeAsString());
}

}  // namespace berth::control
