// OpenTemporaryOverlay: an image under which another one is never changed, and which is gone when it is
// closed.
#ifndef BERTH_IMAGE_OPENER_TEMPORARY_OVERLAY_H_
#define BERTH_IMAGE_OPENER_TEMPORARY_OVERLAY_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "image/block/block_device.h"

namespace berth {

// A qcow2 image over `below`, in a file of `directory` that has no name, so that it goes with the process
// too. It takes at most as much space as the disk has, and somewhat more. Nothing of it is meant to survive:
// a flush does not wait for the disk. The system's errors, with the directory in the text. May block.
absl::StatusOr<std::shared_ptr<BlockDevice>> OpenTemporaryOverlay(std::shared_ptr<BlockDevice> below,
                                                                  const std::string& directory);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_TEMPORARY_OVERLAY_H_
