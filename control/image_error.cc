#include "control/image_error.h"

#include <string>

#include "control/status_details.h"
#include "image/block/error_reason.h"

namespace berth::control {

absl::Status DescribeImageError(const absl::Status& status, absl::string_view path, absl::string_view field) {
  const std::string reason = ErrorReason(status);
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return InvalidField(field, status.message());
    case absl::StatusCode::kFailedPrecondition:
      return FailedCondition(reason.empty() ? "IMAGE_UNUSABLE" : reason, path, status.message());
    case absl::StatusCode::kNotFound:
      return MissingResource("image", path, status.message());
    case absl::StatusCode::kAlreadyExists:
      return ExistingResource("image", path, status.message());
    case absl::StatusCode::kPermissionDenied:
      return WithReason(WithResource(absl::PermissionDeniedError(status.message()), "image", path),
                        reason.empty() ? "NO_FILE_PERMISSION" : reason);
    default:
      return WithReason(WithResource(absl::Status(status.code(), status.message()), "image", path),
                        reason.empty() ? "IMAGE_ERROR" : reason);
  }
}

}  // namespace berth::control
