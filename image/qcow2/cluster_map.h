// ClusterMap: where the bytes of the virtual disk are. It decides and does no I/O: whoever asks loads the
// slices it names, and reads what it points to.
//
// Thread-safe: it does not change.
#ifndef BERTH_IMAGE_QCOW2_CLUSTER_MAP_H_
#define BERTH_IMAGE_QCOW2_CLUSTER_MAP_H_

#include <cstdint>
#include <vector>

#include "image/qcow2/format/cluster_entry.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/l2_cache.h"

namespace berth::qcow2 {

// A run of the virtual disk of which one thing is true.
struct Run {
  RunKind kind = RunKind::kInvalid;
  bool has_space = false;  // Of kZero and kUnallocated: there are clusters for it.
  uint64_t host = 0;       // Of kData, where it begins in the data file; of kCompressed, the L2 entry.
  uint64_t length = 0;     // Bytes.

  // Whether `next`, which lies behind this one on the disk, can be read together with it.
  bool Continues(const Run& next) const {
    if (kind != next.kind || has_space != next.has_space) return false;
    if (kind == RunKind::kData) return host + length == next.host;
    return kind == RunKind::kUnallocated || kind == RunKind::kZero;
  }
};

class ClusterMap {
 public:
  // `l1` are the entries of the L1 table, in the machine's byte order.
  ClusterMap(const Header& header, uint64_t l1_table_offset, std::vector<uint64_t> l1);

  const EntryLayout& layout() const { return layout_; }
  uint64_t slice_bytes() const { return slice_bytes_; }
  // Bytes of the disk that one slice describes, as a power of two.
  uint32_t slice_coverage_bits() const { return slice_coverage_bits_; }

  struct SlicePlace {
    enum class State : uint8_t {
      kNowhere,  // Nothing is allocated there: see WithoutTable().
      kInvalid,  // The L1 entry has reserved bits, or leads into other metadata.
      kInFile,
    };
    State state;
    uint64_t file_offset = 0;
  };
  // The slice that describes the byte `offset` of the disk.
  SlicePlace Locate(uint64_t offset) const;

  // The run from `offset` on, at most `length` bytes, that `slice` describes. It ends with the slice at the
  // latest.
  Run Map(const L2Slice& slice, uint64_t offset, uint64_t length) const;

  // The same where there is no L2 table; it ends with the L1 entry at the latest.
  Run WithoutTable(uint64_t offset, uint64_t length) const;

 private:
  bool LiesOverMetadata(uint64_t table) const;

  const EntryLayout layout_;
  const uint64_t slice_bytes_;
  const uint32_t slice_coverage_bits_;
  const uint32_t l1_coverage_bits_;
  // Regions of the file where no L2 table can be.
  struct Region {
    uint64_t begin;
    uint64_t end;
  };
  const std::vector<Region> metadata_;
  const std::vector<uint64_t> l1_;
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_CLUSTER_MAP_H_
