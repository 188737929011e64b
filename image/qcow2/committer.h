// Committer: brings what WriteMap decided to the disk, in the order that a power cut at any point survives.
// docs/qcow2.md numbers the steps and gives the reasons.
//
// It owns the refcounts: they are on the disk alone, read, changed and written back by a commit, and one
// commit runs at a time.
//
// Thread-safe. Lifetime: outlives its commits.
#ifndef BERTH_IMAGE_QCOW2_COMMITTER_H_
#define BERTH_IMAGE_QCOW2_COMMITTER_H_

#include <cstdint>
#include <set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/io/mutex.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/turns.h"
#include "image/qcow2/write_map.h"

namespace berth::qcow2 {

class Committer {
 public:
  // `refcount_table` are its entries in the machine's byte order. `file` and `map` outlive the committer.
  Committer(const Header& header, std::vector<uint64_t> refcount_table, BlockDevice& file, WriteMap& map)
      : order_(header.refcount_order),
        cluster_bits_(header.cluster_bits),
        l1_table_offset_(header.l1_table_offset),
        table_offset_(header.refcount_table_offset),
        table_(std::move(refcount_table)),
        file_(file),
        map_(map) {}

  // Everything that ended before the call is on stable storage when it returns success. `channel` is one of
  // the file, `data` of the external data file or null, on `reactor`, whose thread calls it.
  Task<IoResult> Commit(Reactor& reactor, BlockChannel& channel, BlockChannel* data);

  // Makes the file at least `bytes` long. ENOSPC where it cannot be.
  Task<IoResult> Grow(Reactor& reactor, uint64_t bytes);

 private:
  Task<IoResult> CommitBatch(Reactor& reactor, BlockChannel& channel, BlockChannel* data);
  bool PlanBlocks(std::vector<uint64_t>* taken);
  bool PlanTable(uint64_t entries, std::vector<uint64_t>* taken);
  Task<IoResult> WriteBlocks(BlockChannel& channel);
  Task<IoResult> WriteTable(BlockChannel& channel);
  Task<IoResult> ChangeRefcounts(BlockChannel& channel, std::vector<uint64_t> clusters, bool add,
                                 std::vector<uint64_t>* unused);
  Task<void> GiveSpaceBack(BlockChannel& channel, std::vector<uint64_t> clusters);
  Task<IoResult> WriteReferences(BlockChannel& channel, const WriteMap::Batch& batch);
  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits_; }
  uint64_t block_entries() const { return (cluster_size() * 8) >> order_; }

  const uint32_t order_;
  const uint32_t cluster_bits_;
  const uint64_t l1_table_offset_;
  // Of whoever has the turn.
  Turns turns_;
  uint64_t table_offset_;
  std::vector<uint64_t> table_;
  bool table_moved_ = false;
  uint64_t old_table_ = 0;
  uint64_t old_table_clusters_ = 0;
  std::set<uint64_t> new_blocks_;  // Indexes of entries that are not on the disk.
  BlockDevice& file_;
  WriteMap& map_;
  Turns growing_;

  // So that those who wait for the same commit share it.
  Mutex mutex_;
  uint64_t begun_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t ended_ ABSL_GUARDED_BY(mutex_) = 0;  // The last that succeeded.
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_COMMITTER_H_
