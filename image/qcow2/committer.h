// Committer: brings what WriteMap decided to the disk, in the order that a power cut at any point survives.
// docs/qcow2.md numbers the steps and gives the reasons.
//
// It owns the refcounts: they are on the disk alone, read, changed and written back by a commit, and one
// commit runs at a time.
//
// Thread-safe. Lifetime: outlives its commits.
#ifndef BERTH_IMAGE_QCOW2_COMMITTER_H_
#define BERTH_IMAGE_QCOW2_COMMITTER_H_

#include <atomic>
#include <cstdint>
#include <set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/io/blocking_pool.h"
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
        l1_entries_(header.l1_size),
        table_offset_(header.refcount_table_offset),
        table_(std::move(refcount_table)),
        file_(file),
        map_(map) {}

  // Everything that ended before the call is on stable storage when it returns success. `channel` is one of
  // the file, `data` of the external data file or null, on `reactor`, whose thread calls it.
  Task<IoResult> Commit(Reactor& reactor, BlockChannel& channel, BlockChannel* data);

  // Makes the file at least `bytes` long. ENOSPC where it cannot be.
  Task<IoResult> Grow(Reactor& reactor, uint64_t bytes);

  // Gives the L1 table room for `entries`, at most kMaxL1Bytes, in the map too: it moves. ENOSPC where there
  // is no space, and nothing has changed then. The table's old clusters are free after two commits.
  Task<IoResult> GrowL1(Reactor& reactor, BlockChannel& channel, uint64_t entries);
  // Writes the disk's size into the header; it is on stable storage when this returns success.
  Task<IoResult> WriteDiskSize(Reactor& reactor, BlockChannel& channel, uint64_t size);
  // Drops refcount blocks that count nothing but themselves, which keep the file long; `*dropped` is how
  // many. The refcounts of their clusters that stand in other blocks go down with the next commit.
  Task<IoResult> DropUnusedBlocks(Reactor& reactor, BlockChannel& channel, size_t* dropped);
  // Cuts off what is free at the end of the file; best effort. What frees it has been flushed.
  Task<void> CutFreeTail(Reactor& reactor);

 private:
  // Resizes of files block.
  static BlockingPool& GrowthPool();
  Task<IoResult> CommitBatch(Reactor& reactor, BlockChannel& channel, BlockChannel* data);
  bool PlanBlocks(std::vector<uint64_t>* taken);
  bool PlanTable(uint64_t entries, std::vector<uint64_t>* taken);
  Task<IoResult> WriteBlocks(BlockChannel& channel);
  Task<IoResult> WriteTable(BlockChannel& channel);
  Task<IoResult> ChangeRefcounts(BlockChannel& channel, std::vector<uint64_t> clusters, bool add,
                                 std::vector<uint64_t>* unused);
  Task<IoResult> MoveL1(Reactor& reactor, BlockChannel& channel, uint64_t first, uint64_t clusters);
  Task<IoResult> CopyL1(BlockChannel& channel, uint64_t to, uint64_t bytes);
  Task<void> GiveSpaceBack(BlockChannel& channel, std::vector<uint64_t> clusters);
  Task<IoResult> WriteReferences(BlockChannel& channel, const WriteMap::Batch& batch);
  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits_; }
  uint64_t block_entries() const { return (cluster_size() * 8) >> order_; }

  const uint32_t order_;
  const uint32_t cluster_bits_;
  // Of whoever has the turn.
  Turns turns_;
  uint64_t l1_table_offset_;
  uint64_t l1_entries_;  // On the disk.
  uint64_t table_offset_;
  std::vector<uint64_t> table_;
  bool table_moved_ = false;
  uint64_t old_table_ = 0;
  uint64_t old_table_clusters_ = 0;
  std::set<uint64_t> new_blocks_;  // Indexes of entries that are not on the disk.
  BlockDevice& file_;
  WriteMap& map_;
  Turns growing_;
  std::atomic<bool> cutting_ = false;  // The file may become shorter: only who has the turn knows its size.

  // So that those who wait for the same commit share it.
  Mutex mutex_;
  uint64_t begun_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t ended_ ABSL_GUARDED_BY(mutex_) = 0;  // The last that succeeded.
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_COMMITTER_H_
