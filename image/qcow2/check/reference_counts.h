// ReferenceCounts: how often the metadata of an image refers to each cluster of its file.
//
// Thread: one. Memory: 2 bytes a cluster, of which the system gives what is used; counts above 65,534 are
// rare and kept beside.
#ifndef BERTH_IMAGE_QCOW2_CHECK_REFERENCE_COUNTS_H_
#define BERTH_IMAGE_QCOW2_CHECK_REFERENCE_COUNTS_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <unordered_map>

#include "absl/status/statusor.h"

namespace berth::qcow2 {

// 64 TiB of an image with the usual clusters.
inline constexpr uint64_t kMostCheckedClusters = uint64_t{1} << 30;

class ReferenceCounts {
 public:
  // For a file of `clusters`. RESOURCE_EXHAUSTED past kMostCheckedClusters.
  static absl::StatusOr<ReferenceCounts> Create(uint64_t clusters);

  uint64_t clusters() const { return clusters_; }
  // Past the end of the file too: what a repair adds there.
  absl::Status Grow(uint64_t clusters);

  // `cluster` is below clusters().
  void Add(uint64_t cluster, uint64_t times = 1) {
    uint16_t& count = counts_.get()[cluster];
    if (count < kBeside && times < static_cast<uint64_t>(kBeside - count)) {
      count = static_cast<uint16_t>(count + times);
      return;
    }
    // What `beside_` does not have yet is 0.
    beside_[cluster] += times + (count < kBeside ? count : 0);
    count = kBeside;
  }
  // Takes back one that was added.
  void Remove(uint64_t cluster) {
    uint16_t& count = counts_.get()[cluster];
    if (count < kBeside) {
      --count;
    } else if (--beside_[cluster] < kBeside) {
      count = static_cast<uint16_t>(beside_[cluster]);
      beside_.erase(cluster);
    }
  }
  // 0 for what lies behind the end.
  uint64_t Get(uint64_t cluster) const {
    if (cluster >= clusters_) return 0;
    const uint16_t count = counts_.get()[cluster];
    return count < kBeside ? count : beside_.at(cluster);
  }

 private:
  struct Free {
    void operator()(uint16_t* counts) const { std::free(counts); }
  };
  static constexpr uint16_t kBeside = 0xffff;

  ReferenceCounts() = default;

  uint64_t clusters_ = 0;
  std::unique_ptr<uint16_t[], Free> counts_;
  std::unordered_map<uint64_t, uint64_t> beside_;
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_CHECK_REFERENCE_COUNTS_H_
