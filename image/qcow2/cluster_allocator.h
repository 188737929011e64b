// ClusterAllocator: which clusters of an image file are free, and which of them are taken next.
//
// A bit for each cluster is in memory (2 MiB for a file of 1 TiB at the usual cluster size), read from the
// refcounts when the image is opened for writing, so that an allocation is a decision that needs no I/O. It
// is exact about "taken": a cluster counts as taken from its allocation until its last reference is known to
// be gone from the disk and nobody reads it any more.
//
// Not thread-safe: the image's lock guards it.
#ifndef BERTH_IMAGE_QCOW2_CLUSTER_ALLOCATOR_H_
#define BERTH_IMAGE_QCOW2_CLUSTER_ALLOCATOR_H_

#include <cstdint>
#include <vector>

namespace berth::qcow2 {

class ClusterAllocator {
 public:
  // Clusters from `limit` on are never given away: an entry could not name them.
  explicit ClusterAllocator(uint64_t limit) : limit_(limit) {}

  // While the refcounts are read.
  void MarkTaken(uint64_t cluster);

  struct Range {
    uint64_t first = 0;
    uint64_t count = 0;  // 0 where there is no space.
  };
  // Takes the first free clusters at or behind the last allocation, going around at the end: at least one, at
  // most `wanted`, in a row. Space inside the file goes before growing it.
  Range Allocate(uint64_t wanted);
  // Exactly `count` in a row, for tables that must be contiguous.
  Range AllocateWhole(uint64_t count);

  void Free(uint64_t cluster);

  // Lets end() follow the last cluster that is taken, and returns it: what lies behind can be cut off.
  uint64_t TrimEnd();

  // The first cluster in [begin, end) that is taken, or `end`.
  uint64_t FindTaken(uint64_t begin, uint64_t end) const;

  bool IsTaken(uint64_t cluster) const {
    const uint64_t word = cluster / 64;
    return word < taken_.size() && (taken_[word] >> (cluster % 64) & 1) != 0;
  }
  // One behind the last that is taken, or was since the last TrimEnd().
  uint64_t end() const { return end_; }
  // Taken clusters.
  uint64_t taken() const { return count_; }

 private:
  // The first free cluster in [begin, end), or `end`.
  uint64_t FindFree(uint64_t begin, uint64_t end) const;
  uint64_t RunLength(uint64_t first, uint64_t end, uint64_t wanted) const;
  Range Take(uint64_t first, uint64_t count);

  const uint64_t limit_;
  std::vector<uint64_t> taken_;
  uint64_t end_ = 0;
  uint64_t count_ = 0;
  uint64_t next_ = 0;
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_CLUSTER_ALLOCATOR_H_
