// From an error of image/ to one with the details that the API promises.
#ifndef BERTH_CONTROL_IMAGE_ERROR_H_
#define BERTH_CONTROL_IMAGE_ERROR_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace berth::control {

// `path` is the image's, `field` the place in the request that led to `status`, such as "spec.image.path".
absl::Status DescribeImageError(const absl::Status& status, absl::string_view path, absl::string_view field);

}  // namespace berth::control

#endif  // BERTH_CONTROL_IMAGE_ERROR_H_
