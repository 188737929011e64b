// WriteMap: the mapping of an image that is open for writing, and every decision about it.
//
// It does no I/O. Whoever works on the image asks for the next step, does what it says (load a slice, wait,
// write data), and reports back. docs/qcow2.md says in which order what reaches the disk; the commit takes
// its work from here.
//
// Thread-safe: one lock, held for decisions only. Lifetime: outlives its channels; nothing is allocated or
// waiting when it is destroyed.
#ifndef BERTH_IMAGE_QCOW2_WRITE_MAP_H_
#define BERTH_IMAGE_QCOW2_WRITE_MAP_H_

#include <coroutine>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "image/io/mutex.h"
#include "image/io/reactor.h"
#include "image/qcow2/cluster_allocator.h"
#include "image/qcow2/cluster_map.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

// While somebody holds one, no cluster that the mapping named when it was given is used for anything else.
using MappingHold = std::shared_ptr<const void>;

class WriteMap {
 public:
  // `metadata` are the clusters of header, L1 table, refcount table and refcount blocks, which `allocator`
  // has as taken, as it has everything else whose refcount is not 0.
  WriteMap(const Header& header, std::vector<uint64_t> l1, ClusterAllocator allocator,
           const std::vector<uint64_t>& metadata, bool has_backing, bool gives_space_back,
           uint64_t cache_bytes);
  WriteMap(const WriteMap&) = delete;
  WriteMap& operator=(const WriteMap&) = delete;

  const EntryLayout& layout() const { return map_.layout(); }
  uint64_t slice_bytes() const { return map_.slice_bytes(); }

  // Units (subclusters or clusters) that are being written and not in the mapping yet.
  struct Allocation {
    uint64_t guest = 0;  // The first cluster of the disk.
    uint64_t count = 0;
    uint64_t host = 0;  // The first cluster of the file; they lie in a row.
    // What has to be written, in bytes of the disk: whole units, and the request inside of them. The disk may
    // end before.
    uint64_t fill_begin = 0;
    uint64_t fill_end = 0;
    bool reused = false;  // The clusters are the disk's already.
    // Units of the disk that nobody else changes meanwhile.
    uint64_t first_unit = 0;
    uint64_t units = 0;
    struct Waiter {
      Reactor* reactor;
      std::coroutine_handle<> handle;
    };
    std::vector<Waiter> waiters;
    void* slice = nullptr;  // The map's own.
  };

  struct Step {
    enum class Action : uint8_t {
      kLoad,       // Read the slice at `file_offset`, while `hold` holds, and give it to AddSlice(); then ask
                   // again.
      kWait,       // Await WaitFor() of `length` bytes from `wait_offset` on; then ask again.
      kRun,        // Find(): the run is known. PlanWrite(): its data is overwritten in place.
      kAllocate,   // Fill what `allocation` says, and call Finish().
      kDone,       // PlanClear(): `length` bytes are cleared.
      kByWriting,  // PlanClear(): `length` bytes can be cleared by writing zeroes only.
      kFull,       // No cluster is free. A commit may free some.
      kFailed,     // EIO: the mapping is broken there, or a commit has failed.
    };
    Action action = Action::kFailed;
    uint64_t file_offset = 0;
    uint64_t wait_offset = 0;
    uint64_t length = 0;  // Bytes of the request, from its offset on, that this step is about.
    Run run = {};
    Allocation* allocation = nullptr;
    MappingHold hold = {};
  };

  // What is at `offset`, for at most `length` bytes: kRun, kLoad, or kFailed.
  Step Find(uint64_t offset, uint64_t length);
  // How to write there: kRun, kAllocate, kLoad, kWait, kFull or kFailed.
  Step PlanWrite(uint64_t offset, uint64_t length);
  // Makes whole units read as zeroes (`discard`: as anything) and frees clusters of which nothing is left:
  // kDone, kByWriting, kLoad, kWait, kFull or kFailed. The range begins and ends on units; a range may end
  // with the disk.
  Step PlanClear(uint64_t offset, uint64_t length, bool discard);

  // For a disk that shrinks: takes whole clusters out of the mapping and frees them, and with them L2 tables
  // of which nothing is left: kDone, kLoad, kFull or kFailed. Nothing there is being written.
  Step PlanCut(uint64_t offset, uint64_t length);
  // For a disk that grows: so many entries has the L1 table now, the new ones empty.
  void GrowL1(uint64_t entries);
  uint64_t l1_entries() const;
  // Guest bytes that an L1 entry describes, as a power of two.
  uint32_t l1_coverage_bits() const { return l1_bits_; }
  // The first byte from `offset` on, which may be behind the disk's end, that has an L2 table.
  uint64_t NextTable(uint64_t offset) const;
  // As ClusterAllocator::TrimEnd().
  uint64_t TrimEnd();
  // Of clusters [first, first + count) at most `own` is taken.
  bool NothingElseTaken(uint64_t first, uint64_t count, uint64_t own) const;
  // A cluster of metadata to which nothing leads any more is free.
  void FreeMetadata(uint64_t cluster);

  // Puts what was filled of `allocation` into the mapping or, where that failed, gives its clusters back.
  void Finish(Allocation* allocation, bool written);

  void AddSlice(uint64_t file_offset, std::vector<uint64_t> words);

  // `co_await map.WaitFor(reactor, offset, length);` waits until an allocation that is in the way has ended.
  auto WaitFor(Reactor& reactor, uint64_t offset, uint64_t length) {
    struct Awaiter {
      WriteMap* map;
      Reactor* reactor;
      uint64_t offset;
      uint64_t length;
      bool await_ready() const noexcept { return false; }
      bool await_suspend(std::coroutine_handle<> waiter) const {
        return map->StartWaiting(offset, length, {reactor, waiter});
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{this, &reactor, offset, length};
  }

  // What a commit writes. Entries are in the machine's byte order.
  struct SliceImage {
    uint64_t file_offset;
    std::vector<uint64_t> words;
  };
  struct Batch {
    std::vector<SliceImage> new_tables;             // Of tables that nothing on the disk leads to yet.
    std::vector<SliceImage> slices;                 // Of the others.
    std::vector<std::pair<uint64_t, uint64_t>> l1;  // Index, entry.
    std::vector<uint64_t> taken;                    // Clusters whose refcount becomes 1.
    std::vector<uint64_t> released;                 // Clusters that lose a reference.
    std::vector<uint64_t> unused;  // Clusters whose space goes back to the file system; then Free().
    uint64_t epoch = 0;
  };
  Batch TakeBatch();
  // After the batch is on the disk: `free` clusters have no reference any more.
  void Committed(uint64_t epoch, std::vector<uint64_t> free);
  // The space of these, a batch's `unused`, was given back.
  void Free(const std::vector<uint64_t>& clusters);
  // The state on the disk is unknown: nothing is written any more.
  void Fail();
  bool failed() const;

  // Clusters for the commit's own tables; taken, and metadata from now on. 0 where there is no space.
  uint64_t TakeMetadata(uint64_t count);
  // The same for clusters whose refcount the next commit makes 1.
  uint64_t TakeTable(uint64_t clusters);
  void GiveBackMetadata(uint64_t first, uint64_t count);

  // Too much of the mapping waits to be written: commit before going on.
  bool NeedsCommit() const;
  // One behind the last cluster that is used.
  uint64_t end_cluster() const;

 private:
  struct Slice {
    L2Slice content;
    bool dirty = false;
    bool new_table = false;
    uint32_t pins = 0;  // Allocations that will change it.
    std::list<uint64_t>::iterator recent;
  };
  struct Epoch {};
  struct Quarantine {
    std::weak_ptr<const Epoch> users;
    bool committed = false;
    std::vector<uint64_t> clusters;
  };

  Slice* FindSlice(uint64_t file_offset) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Slice& PutSlice(uint64_t file_offset, std::vector<uint64_t> words) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void MarkDirty(Slice& slice) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Evict() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The slice for a change at `offset`; where there is none in memory, `step` says what to do first.
  Slice* WritableSlice(uint64_t offset, Step* step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Slice* NewTable(uint64_t l1_index, uint64_t offset, uint64_t old_table, Step* step)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The words of an L2 entry; the second is null for standard ones.
  struct Entry {
    uint64_t* descriptor;
    uint64_t* subclusters;
  };
  Entry EntryOf(Slice& slice, uint64_t cluster) const;
  // The clusters of `entry` are the disk's own, and nothing else uses them.
  bool IsOwn(uint64_t entry) const;
  // The units of [begin, end) that lie in `cluster`, a bit each.
  uint64_t UnitsOf(uint64_t cluster, uint64_t begin, uint64_t end) const;
  // The units that a copy of the cluster has to have; a bit each.
  uint64_t UnitsToCopy(const Entry& entry) const;
  // How much can be overwritten of a run that begins at `offset` in an own cluster.
  uint64_t OverwritableLength(Slice& slice, uint64_t offset, uint64_t length)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Plans the filling of units that have a place already, or of new clusters.
  bool PlanReuse(Slice& slice, uint64_t offset, uint64_t end, Allocation* allocation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool PlanClusters(Slice& slice, uint64_t offset, uint64_t end, Allocation* allocation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EnterMapping(Slice& slice, const Allocation& allocation, uint64_t index)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // False where it can be done by writing only.
  bool ClearUnits(Slice& slice, uint64_t cluster, uint64_t units, bool discard)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Cuts all of the L2 table at `table`.
  Step CutTable(uint64_t l1_index, uint64_t table) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReleaseMapping(uint64_t entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReleaseQuarantine() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // An allocation of one of these units, or null.
  Allocation* InTheWay(uint64_t first_unit, uint64_t last_unit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Allocation* InTheWayOfCluster(uint64_t cluster) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t SliceEnd(uint64_t offset) const {
    return ((offset >> map_.slice_coverage_bits()) + 1) << map_.slice_coverage_bits();
  }
  uint64_t UnitsInCluster() const { return uint64_t{1} << (layout().cluster_bits - layout().unit_bits()); }
  bool StartWaiting(uint64_t offset, uint64_t length, Allocation::Waiter waiter);
  bool MayOverwrite(uint64_t host) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t SliceOffset(uint64_t table, uint64_t offset) const;

  const ClusterMap map_;
  const bool has_backing_;
  const bool can_map_zeroes_;  // An entry can say that something reads as zeroes.
  const bool gives_space_back_;
  const uint32_t l1_bits_;  // log2 of the bytes that an L1 entry describes.
  const size_t capacity_;   // Slices.

  mutable Mutex mutex_;
  std::vector<uint64_t> l1_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<uint64_t> dirty_l1_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, std::unique_ptr<Slice>> slices_ ABSL_GUARDED_BY(mutex_);
  std::list<uint64_t> recent_ ABSL_GUARDED_BY(mutex_);  // Offsets of slices, the latest first.
  size_t dirty_ ABSL_GUARDED_BY(mutex_) = 0;
  ClusterAllocator allocator_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<uint64_t> metadata_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, std::unique_ptr<Allocation>> allocations_ ABSL_GUARDED_BY(mutex_);  // By the first unit.
  std::vector<uint64_t> taken_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> released_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const Epoch> epoch_ ABSL_GUARDED_BY(mutex_) = std::make_shared<const Epoch>();
  uint64_t first_epoch_ ABSL_GUARDED_BY(mutex_) = 0;  // Of quarantine_.
  std::deque<Quarantine> quarantine_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> unused_ ABSL_GUARDED_BY(mutex_);
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_WRITE_MAP_H_
