// The API's Secret: read, and taken out of what is kept or shown.
#ifndef BERTH_CONTROL_SECRET_FIELD_H_
#define BERTH_CONTROL_SECRET_FIELD_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "berth/v1/exports.pb.h"
#include "image/opener/image_roots.h"
#include "image/secret/secret.h"

namespace berth::control {

// The secret itself, none where none is given. A file is read inside `roots`, those of --secret-root.
// FAILED_PRECONDITION (reason SECRET_NEEDED) where a value was given once and is not there any more;
// PERMISSION_DENIED (reason OUTSIDE_SECRET_ROOTS), NOT_FOUND. Blocks.
absl::StatusOr<Secret> ReadSecretField(absl::string_view field, const v1::Secret& secret,
                                       const ImageRoots& roots);

// Leaves what may be kept and shown: where the secret comes from. A value is wiped.
void ForgetValue(v1::Secret* secret);
// Of a message that has an image, or has none.
void ForgetValue(v1::ExportSpec* spec);

}  // namespace berth::control

#endif  // BERTH_CONTROL_SECRET_FIELD_H_
