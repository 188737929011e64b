// What has to be read and checked before an image may be changed.
#ifndef BERTH_IMAGE_QCOW2_OPEN_FOR_WRITING_H_
#define BERTH_IMAGE_QCOW2_OPEN_FOR_WRITING_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/qcow2/cluster_allocator.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

struct WritableState {
  ClusterAllocator allocator;
  std::vector<uint64_t> refcount_table;     // Entries in the machine's byte order.
  std::vector<uint64_t> metadata_clusters;  // Header, L1 table, refcount table and blocks.
};

// Reads every refcount, checks that nothing overlaps (`tables` are the offsets of clusters with other
// metadata), and clears the autoclear features that are not among
// `maintained`. FAILED_PRECONDITION, with the way out, where the image says that it is corrupt;
// INVALID_ARGUMENT for broken tables. Blocks; not on a
// reactor's thread.
absl::StatusOr<WritableState> PrepareForWriting(BlockDevice& image, const Header& header,
                                                const std::vector<uint64_t>& l1,
                                                const std::vector<uint64_t>& tables, uint64_t maintained);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_OPEN_FOR_WRITING_H_
