// Entries of L1 and L2 tables (section "Cluster mapping"): what they say, checked. Pure; no I/O.
#ifndef BERTH_IMAGE_QCOW2_FORMAT_CLUSTER_ENTRY_H_
#define BERTH_IMAGE_QCOW2_FORMAT_CLUSTER_ENTRY_H_

#include <cstdint>
#include <optional>

#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

inline constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;  // Bits 9 to 55.
inline constexpr uint64_t kCopied = uint64_t{1} << 63;       // The refcount is exactly one.
inline constexpr uint64_t kCompressed = uint64_t{1} << 62;
inline constexpr uint64_t kReadsAsZero = 1;  // Version 3 with standard entries.
inline constexpr int kSubclusters = 32;      // Of a cluster, with extended entries.

// What of the header the entries depend on.
struct EntryLayout {
  explicit EntryLayout(const Header& header)
      : cluster_bits(header.cluster_bits),
        extended(header.extended_l2()),
        zero_flag(header.version >= 3 && !extended),
        external_data(header.has_data_file()) {}

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  // The finest grain of the mapping: subclusters, or clusters.
  uint32_t unit_bits() const { return extended ? cluster_bits - 5 : cluster_bits; }
  uint32_t entry_words() const { return extended ? 2 : 1; }
  // log2 of the entries of an L2 table.
  uint32_t l2_bits() const { return cluster_bits - (extended ? 4 : 3); }

  uint32_t cluster_bits;
  bool extended;
  bool zero_flag;
  bool external_data;
};

// The offset of the L2 table that an L1 entry names; 0 where there is none, nothing where the entry has
// reserved bits or an offset inside a cluster.
inline std::optional<uint64_t> L2TableOffset(const EntryLayout& layout, uint64_t l1_entry) {
  const uint64_t offset = l1_entry & kOffsetMask;
  if ((l1_entry & ~(kOffsetMask | kCopied)) != 0 || offset % layout.cluster_size() != 0) return std::nullopt;
  return offset;
}

// "Compressed Clusters Descriptor".
struct CompressedExtent {
  uint64_t offset = 0;  // Of the first byte, anywhere in the file.
  uint64_t length = 0;  // Bytes up to the end of the last sector; the data may end before.
};

// Nothing where reserved bits are set.
inline std::optional<CompressedExtent> DecodeCompressed(const EntryLayout& layout, uint64_t entry) {
  const uint32_t offset_bits = 62 - (layout.cluster_bits - 8);
  const uint64_t offset = entry & ((uint64_t{1} << offset_bits) - 1);
  if ((offset >> 56) != 0 || (entry & kCopied) != 0) return std::nullopt;
  const uint64_t sectors = ((entry & ~(kCopied | kCompressed)) >> offset_bits) + 1;
  return CompressedExtent{offset, sectors * 512 - offset % 512};
}

// The entry for compressed data of `length` bytes, at least 1 and at most twice a cluster, at `offset`.
inline uint64_t EncodeCompressed(const EntryLayout& layout, uint64_t offset, uint64_t length) {
  const uint32_t offset_bits = 62 - (layout.cluster_bits - 8);
  const uint64_t additional_sectors = (offset + length - 1) / 512 - offset / 512;
  return kCompressed | additional_sectors << offset_bits | offset;
}

enum class RunKind : uint8_t {
  kUnallocated,  // The backing file's, or zeroes.
  kZero,
  kData,
  kCompressed,
  kInvalid,  // The entry says what none may say.
};

// What is true of one unit (a subcluster, or a cluster).
struct UnitMapping {
  RunKind kind = RunKind::kUnallocated;
  bool has_space = false;  // Of kZero and kUnallocated: there is a cluster for it.
  // Of kData, the byte in the data file where the unit begins; of kCompressed, the entry.
  uint64_t host = 0;
};

// `descriptor` and `subclusters` are the words of an L2 entry (the second is 0 for standard ones), `unit` the
// index of the subcluster in the cluster, and `guest_cluster` the cluster's offset in the virtual disk.
UnitMapping DecodeUnit(const EntryLayout& layout, uint64_t descriptor, uint64_t subclusters, uint32_t unit,
                       uint64_t guest_cluster);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_FORMAT_CLUSTER_ENTRY_H_
