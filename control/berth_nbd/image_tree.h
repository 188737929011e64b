// OpenImageTree: the device that --image-opts describes.
//
// Drivers: file and host_device, raw (offset, size), qcow2 (backing), luks (key-secret), null-co, throttle.
#ifndef BERTH_CONTROL_BERTH_NBD_IMAGE_TREE_H_
#define BERTH_CONTROL_BERTH_NBD_IMAGE_TREE_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "control/berth_nbd/command_line.h"
#include "control/berth_nbd/objects.h"
#include "control/berth_nbd/option_tree.h"
#include "image/block/block_device.h"
#include "image/block/image_modes.h"
#include "image/opener/image_spec.h"
#include "image/secret/secret.h"

namespace berth::control {

// How the files of an image are opened, where the description does not say otherwise.
struct ImageModes {
  CacheMode cache = CacheMode::kWriteback;
  DiscardMode discard = DiscardMode::kIgnore;
  LockMode lock = LockMode::kExclusive;
  bool read_only = false;
  std::optional<SnapshotChoice> snapshot = {};  // Of the topmost image.
  Secret secret = {};                           // Of an encrypted qcow2 image.
};

// Errors as OpenImage(); for a snapshot of what has none INVALID_ARGUMENT. May block.
absl::StatusOr<std::shared_ptr<BlockDevice>> OpenImageFile(ImageFormat format, const std::string& path,
                                                           const ImageModes& modes);

// INVALID_ARGUMENT names the option that is wrong, missing or unknown; UNIMPLEMENTED a driver that there is
// not. Else as OpenImage(). May block; not on a reactor's thread.
absl::StatusOr<std::shared_ptr<BlockDevice>> OpenImageTree(const OptionTree& tree, const ImageModes& modes,
                                                           const Objects& objects);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_IMAGE_TREE_H_
