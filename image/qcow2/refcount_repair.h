// Refcounts counted again from what refers to clusters: for images that were written with lazy refcounts and
// not closed (the dirty bit).
#ifndef BERTH_IMAGE_QCOW2_REFCOUNT_REPAIR_H_
#define BERTH_IMAGE_QCOW2_REFCOUNT_REPAIR_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

// For each cluster of the file, and some behind its end, how many references lead to it. Memory: four bytes a
// cluster. INVALID_ARGUMENT names the entry that leads nowhere. Blocks; not on a reactor's thread.
absl::StatusOr<std::vector<uint32_t>> CountReferences(BlockDevice& image, const Header& header);

// Makes refcounts and copied flags what the references say, and then clears the dirty bit, on the disk and in
// `header`; a power cut before that leaves an image that has to be repaired as it had before.
// FAILED_PRECONDITION, with the way out, where that takes more. Blocks; not on a reactor's thread.
absl::Status RepairRefcounts(BlockDevice& image, Header* header);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_REFCOUNT_REPAIR_H_
