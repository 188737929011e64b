// The reason behind an absl::Status as a word that programs may compare, carried as the status's payload.
// control/service turns it into google.rpc.ErrorInfo.
#ifndef BERTH_IMAGE_BLOCK_ERROR_REASON_H_
#define BERTH_IMAGE_BLOCK_ERROR_REASON_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace berth {

inline constexpr char kErrorReasonPayload[] = "type.berth/reason";

inline constexpr char kReasonImageLocked[] = "IMAGE_LOCKED";  // Another program, or an export, has it.
inline constexpr char kReasonWouldShrink[] = "WOULD_SHRINK";  // And nobody said that it may.
inline constexpr char kReasonOutsideImageRoots[] = "OUTSIDE_IMAGE_ROOTS";

inline absl::Status WithReason(absl::Status status, absl::string_view reason) {
  status.SetPayload(kErrorReasonPayload, absl::Cord(reason));
  return status;
}

// Empty where there is none.
inline std::string ErrorReason(const absl::Status& status) {
  const auto payload = status.GetPayload(kErrorReasonPayload);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace berth

#endif  // BERTH_IMAGE_BLOCK_ERROR_REASON_H_
