// Opening a qcow2 image with all the files that it names: its external data file, its backing file, and what
// that one names.
//
// The names come from inside images and are not trusted: each is opened inside the image roots alone, no file
// twice in a chain, as raw or qcow2 as the image above it states (never guessed: the bytes of a raw file are
// a guest's), and only plain file names are, no json: and no protocols.
#ifndef BERTH_IMAGE_OPENER_QCOW2_CHAIN_H_
#define BERTH_IMAGE_OPENER_QCOW2_CHAIN_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/opener/image_roots.h"
#include "image/opener/image_spec.h"
#include "image/qcow2/format/header.h"

namespace berth {

// Images that one chain has at most.
inline constexpr size_t kMostLayers = 256;

// Opens the qcow2 image of `spec`; what is below it read-only. Errors as OpenImage() and Qcow2Device::Open(),
// the image of the chain named in the text. May block.
absl::StatusOr<std::shared_ptr<BlockDevice>> OpenQcow2Chain(const ImageSpec& spec, const ImageRoots& roots);

// The file that `name`, found inside the image at `image_path`, means. INVALID_ARGUMENT where it is more than
// a file name.
absl::StatusOr<std::string> ResolveNameInImage(const std::string& image_path, const std::string& name);

// The format of the backing file that the image at `image_path` names: what its header states, else `given`.
// FAILED_PRECONDITION where neither says it, UNIMPLEMENTED for one that is not known.
absl::StatusOr<ImageFormat> FormatOfBackingFile(const std::string& image_path, const qcow2::Header& header,
                                                std::optional<ImageFormat> given);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_QCOW2_CHAIN_H_
