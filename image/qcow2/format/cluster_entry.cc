#include "image/qcow2/format/cluster_entry.h"

namespace berth::qcow2 {
namespace {

constexpr UnitMapping kInvalid = {RunKind::kInvalid, false, 0};

UnitMapping DecodeSubcluster(const EntryLayout& layout, uint64_t host, bool has_host, uint64_t subclusters,
                             uint32_t unit) {
  const bool allocated = (subclusters >> unit & 1) != 0;
  const bool zero = (subclusters >> (unit + kSubclusters) & 1) != 0;
  if (allocated && (zero || !has_host)) return kInvalid;
  if (zero) return {RunKind::kZero, has_host, 0};
  if (!allocated) return {RunKind::kUnallocated, has_host, 0};
  return {RunKind::kData, false, host + (uint64_t{unit} << layout.unit_bits())};
}

}  // namespace

UnitMapping DecodeUnit(const EntryLayout& layout, uint64_t descriptor, uint64_t subclusters, uint32_t unit,
                       uint64_t guest_cluster) {
  if ((descriptor & kCompressed) != 0) {
    // All of the image's compressed data lies in the image itself.
    if (layout.external_data || !DecodeCompressed(layout, descriptor).has_value()) return kInvalid;
    return {RunKind::kCompressed, false, descriptor};
  }
  const uint64_t known = kOffsetMask | kCopied | (layout.zero_flag ? kReadsAsZero : 0);
  const uint64_t host = descriptor & kOffsetMask;
  if ((descriptor & ~known) != 0 || host % layout.cluster_size() != 0) return kInvalid;
  const bool has_host = host != 0 || (layout.external_data && (descriptor & kCopied) != 0);
  if (layout.external_data && has_host && host != guest_cluster) return kInvalid;
  // Offset 0 of the image is its header.
  if (!has_host && (descriptor & kCopied) != 0) return kInvalid;
  if (layout.extended) return DecodeSubcluster(layout, host, has_host, subclusters, unit);
  if ((descriptor & kReadsAsZero) != 0) return {RunKind::kZero, has_host, 0};
  if (!has_host) return {RunKind::kUnallocated, false, 0};
  return {RunKind::kData, false, host};
}

}  // namespace berth::qcow2
