// Errors of the control plane: absl::Status with google.rpc details as payloads, keyed by their type URL.
//
// Every error that a caller can act on is made here, so that each has its ErrorInfo (domain "berth") with a
// reason that programs compare, and the detail that goes with its code: BadRequest, ResourceInfo or
// PreconditionFailure. docs/grpc.md lists the reasons.
#ifndef BERTH_CONTROL_STATUS_DETAILS_H_
#define BERTH_CONTROL_STATUS_DETAILS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace berth::control {

inline constexpr absl::string_view kErrorDomain = "berth";

// `text` between double quotes, escaped, and cut where it is too long for a message: what a client sent may
// be anything.
std::string Quoted(absl::string_view text);

// INVALID_ARGUMENT: `field` is the path in the request ("spec.image.path"), `description` says what is wrong
// with it and what is allowed. Reason INVALID_FIELD.
absl::Status InvalidField(absl::string_view field, absl::string_view description);

// `status`; where it is about a field that begins with `from`, as one about the same field below `to`: for
// parts of requests that are checked in one place and stand in several.
absl::Status WithMovedField(const absl::Status& status, absl::string_view from, absl::string_view to);

// NOT_FOUND, reason NOT_FOUND. `type` is "export", "attachment" or "image".
absl::Status MissingResource(absl::string_view type, absl::string_view name);
absl::Status MissingResource(absl::string_view type, absl::string_view name, absl::string_view description);

// ALREADY_EXISTS, reason ALREADY_EXISTS.
absl::Status ExistingResource(absl::string_view type, absl::string_view name, absl::string_view description);

// `status` with a ResourceInfo: what it is about. The description is the status's message.
absl::Status WithResource(absl::Status status, absl::string_view type, absl::string_view name);

// FAILED_PRECONDITION with a PreconditionFailure: `subject` is what stands in the way.
absl::Status FailedCondition(absl::string_view reason, absl::string_view subject,
                             absl::string_view description);

// RESOURCE_EXHAUSTED: a limit of the configuration; `description` names the option.
absl::Status LimitReached(absl::string_view limit, absl::string_view description);

// `status` with ErrorInfo{reason}, for errors that come from below. Keeps a reason that is there already.
absl::Status WithReason(absl::Status status, absl::string_view reason);

// The reason of `status`, or an empty string.
std::string ReasonOf(const absl::Status& status);

}  // namespace berth::control

#endif  // BERTH_CONTROL_STATUS_DETAILS_H_
