// The lists that an image has beside its disk: internal snapshots and dirty bitmaps.
#ifndef BERTH_IMAGE_QCOW2_IMAGE_DIRECTORIES_H_
#define BERTH_IMAGE_QCOW2_IMAGE_DIRECTORIES_H_

#include <vector>

#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/qcow2/format/bitmap_directory.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/format/snapshot_table.h"

namespace berth::qcow2 {

// INVALID_ARGUMENT names what is broken. Both block; not on a reactor's thread.
absl::StatusOr<std::vector<Snapshot>> ReadSnapshots(BlockDevice& image, const Header& header);

// Empty where the bitmaps are stale: a writer changed the image that does not know them.
absl::StatusOr<std::vector<BitmapEntry>> ReadBitmaps(BlockDevice& image, const Header& header);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_IMAGE_DIRECTORIES_H_
