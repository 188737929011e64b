// Opening an image from its description: the format's device, and over it, where the description asks for
// them, a slice, read-only, and a rate limit.
//
// A new format is a folder beside raw/, a value of ImageFormat, and one arm in OpenFormat().
#ifndef BERTH_IMAGE_OPENER_OPENER_H_
#define BERTH_IMAGE_OPENER_OPENER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/opener/image_roots.h"
#include "image/opener/image_spec.h"

namespace berth {

// Opens what `spec` describes. INVALID_ARGUMENT for a spec that makes no sense, OUT_OF_RANGE for a slice that
// does not lie inside the image, PERMISSION_DENIED for a path outside `roots`, NOT_FOUND, and
// FAILED_PRECONDITION (reason IMAGE_LOCKED) for an image that somebody else holds. May block.
absl::StatusOr<std::shared_ptr<BlockDevice>> OpenImage(const ImageSpec& spec, const ImageRoots& roots);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_OPENER_H_
