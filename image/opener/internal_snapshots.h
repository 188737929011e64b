// FindInternalSnapshot: one of a qcow2 image's snapshots, by what is known of it.
#ifndef BERTH_IMAGE_OPENER_INTERNAL_SNAPSHOTS_H_
#define BERTH_IMAGE_OPENER_INTERNAL_SNAPSHOTS_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "image/opener/image_roots.h"

namespace berth {

// The id, which is what ImageSpec::snapshot looks at first, of the first snapshot that has the id and the
// name of those that are given. NOT_FOUND where there is none; else the errors of opening the image. The
// image may be in use. May block.
absl::StatusOr<std::string> FindInternalSnapshot(const std::string& path, const ImageRoots& roots,
                                                 const std::optional<std::string>& id,
                                                 const std::optional<std::string>& name);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_INTERNAL_SNAPSHOTS_H_
