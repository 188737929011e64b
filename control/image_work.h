// Checking, converting and mapping images that no export holds for writing: what the ImageToolService does
// with requests that it has checked. proto/berth/v1/image_tools.proto says what each means.
//
// Errors have the API's details. Thread-safe; all of it blocks. The data is moved by a thread of its own, so
// that exports do not feel it.
#ifndef BERTH_CONTROL_IMAGE_WORK_H_
#define BERTH_CONTROL_IMAGE_WORK_H_

#include <cstdint>

#include "absl/status/status.h"
#include "berth/v1/image_tools.pb.h"
#include "image/io/progress.h"
#include "image/opener/image_roots.h"

namespace berth::control {

absl::Status CheckImageFile(const ImageRoots& roots, const v1::CheckImageRequest& request, Progress& progress,
                            v1::CheckImageResponse* answer);

// Secrets are read inside `secret_roots`.
absl::Status ConvertImageFile(const ImageRoots& roots, const ImageRoots& secret_roots,
                              const v1::ConvertImageRequest& request, Progress& progress,
                              v1::ImageInfo* answer);

// At most `page` extents.
absl::Status MapImageFile(const ImageRoots& roots, const ImageRoots& secret_roots,
                          const v1::MapImageRequest& request, uint32_t page, v1::MapImageResponse* answer);

}  // namespace berth::control

#endif  // BERTH_CONTROL_IMAGE_WORK_H_
