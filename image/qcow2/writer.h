// Writer: what an image has that is open for writing.
#ifndef BERTH_IMAGE_QCOW2_WRITER_H_
#define BERTH_IMAGE_QCOW2_WRITER_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "image/block/block_device.h"
#include "image/qcow2/committer.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/open_for_writing.h"
#include "image/qcow2/write_map.h"

namespace berth::qcow2 {

// Thread: as its parts. Lifetime: the device's.
struct Writer {
  Writer(const Header& header, std::vector<uint64_t> l1, WritableState state, BlockDevice& file,
         bool has_backing, uint64_t cache_bytes, bool is_durable, bool may_unmap)
      : map(header, std::move(l1), std::move(state.allocator), state.metadata_clusters, has_backing,
            may_unmap && file.traits().can_discard, cache_bytes),
        committer(header, std::move(state.refcount_table), file, map),
        durable(is_durable),
        unmap(may_unmap) {}

  WriteMap map;
  Committer committer;
  const bool durable;  // Every change is on stable storage when it completes.
  const bool unmap;    // Discards and zeroes free clusters.
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_WRITER_H_
