#include "control/secret_field.h"

#include <fcntl.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "control/image_error.h"
#include "control/status_details.h"
#include "image/block/error_reason.h"
#include "image/io/unique_fd.h"
#include "image/secret/secret_source.h"

namespace berth::control {

absl::StatusOr<Secret> ReadSecretField(absl::string_view field, const v1::Secret& secret,
                                       const ImageRoots& roots) {
  if (secret.source_case() == v1::Secret::kValue) return Secret::FromBytes(secret.value());
  if (secret.source_case() == v1::Secret::SOURCE_NOT_SET) {
    if (!secret.given_by_value()) return Secret();
    return FailedCondition("SECRET_NEEDED", field,
                           "the image's secret was given by value, which is not kept; send the same request "
                           "again with the secret in it");
  }
  const absl::StatusOr<UniqueFd> fd = roots.OpenFile(secret.file(), O_RDONLY);
  if (!fd.ok() && berth::ErrorReason(fd.status()) == kReasonOutsideImageRoots) {
    return WithReason(absl::PermissionDeniedError(absl::StrCat(
                          Quoted(secret.file()),
                          " is not inside a --secret-root of this server, or a symbolic link leads "
                          "out of it; give the secret by value, or have the folder configured")),
                      "OUTSIDE_SECRET_ROOTS");
  }
  const std::string name = absl::StrCat(field, ".file");
  if (!fd.ok()) return DescribeImageError(fd.status(), secret.file(), name);
  absl::StatusOr<Secret> read = ReadSecret(fd->get(), Quoted(secret.file()));
  if (!read.ok()) return DescribeImageError(read.status(), secret.file(), name);
  return read;
}

void ForgetValue(v1::Secret* secret) {
  const bool by_value = secret->source_case() == v1::Secret::kValue;
  if (by_value) {
    WipeString(secret->mutable_value());
    secret->clear_source();
  }
  secret->set_given_by_value(by_value ||
                             (secret->given_by_value() && secret->source_case() != v1::Secret::kFile));
}

void ForgetValue(v1::ExportSpec* spec) {
  if (spec->has_image() && spec->image().has_secret()) ForgetValue(spec->mutable_image()->mutable_secret());
}

}  // namespace berth::control
