#include "image/qcow2/cluster_map.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace berth::qcow2 {

ClusterMap::ClusterMap(const Header& header, uint64_t l1_table_offset, std::vector<uint64_t> l1)
    : layout_(header),
      slice_bytes_(std::min(kMaxSliceBytes, layout_.cluster_size())),
      slice_coverage_bits_(layout_.cluster_bits +
                           static_cast<uint32_t>(std::countr_zero(slice_bytes_ / header.l2_entry_bytes()))),
      l1_coverage_bits_(layout_.cluster_bits + layout_.l2_bits()),
      metadata_({{0, layout_.cluster_size()},
                 {l1_table_offset, l1_table_offset + l1.size() * 8},
                 {header.refcount_table_offset,
                  header.refcount_table_offset +
                      (uint64_t{header.refcount_table_clusters} << layout_.cluster_bits)}}),
      l1_(std::move(l1)) {}

bool ClusterMap::LiesOverMetadata(uint64_t table) const {
  const uint64_t end = table + layout_.cluster_size();
  for (const Region& region : metadata_) {
    if (table < region.end && region.begin < end) return true;
  }
  return false;
}

ClusterMap::SlicePlace ClusterMap::Locate(uint64_t offset) const {
  const uint64_t index = offset >> l1_coverage_bits_;
  if (index >= l1_.size()) return {SlicePlace::State::kInvalid};
  const std::optional<uint64_t> table = L2TableOffset(layout_, l1_[index]);
  if (!table.has_value()) return {SlicePlace::State::kInvalid};
  if (*table == 0) return {SlicePlace::State::kNowhere};
  if (LiesOverMetadata(*table)) return {SlicePlace::State::kInvalid};
  const uint64_t slices = uint64_t{1} << (l1_coverage_bits_ - slice_coverage_bits_);
  return {SlicePlace::State::kInFile, *table + ((offset >> slice_coverage_bits_) % slices) * slice_bytes_};
}

Run ClusterMap::Map(const L2Slice& slice, uint64_t offset, uint64_t length) const {
  const uint32_t unit_bits = layout_.unit_bits();
  const uint32_t units_bits = layout_.cluster_bits - unit_bits;
  const uint32_t words = layout_.entry_words();
  const uint64_t slice_end = ((offset >> slice_coverage_bits_) + 1) << slice_coverage_bits_;
  const uint64_t end = std::min(offset + length, slice_end);
  Run run;
  for (uint64_t at = offset; at < end;) {
    const uint64_t cluster = at >> layout_.cluster_bits;
    const size_t entry = (cluster * words) % slice.words.size();
    const auto unit = static_cast<uint32_t>((at >> unit_bits) & ((uint64_t{1} << units_bits) - 1));
    const UnitMapping mapping =
        DecodeUnit(layout_, slice.words[entry], words == 2 ? slice.words[entry + 1] : 0, unit,
                   cluster << layout_.cluster_bits);
    // A compressed cluster has no subclusters.
    const uint32_t bits = mapping.kind == RunKind::kCompressed ? layout_.cluster_bits : unit_bits;
    const uint64_t next = std::min(end, ((at >> bits) + 1) << bits);
    Run piece = {mapping.kind, mapping.has_space, mapping.host, next - at};
    if (mapping.kind == RunKind::kData) piece.host += at & ((uint64_t{1} << unit_bits) - 1);
    if (at == offset) {
      run = piece;
    } else if (run.Continues(piece)) {
      run.length += piece.length;
    } else {
      break;
    }
    at = next;
  }
  return run;
}

Run ClusterMap::WithoutTable(uint64_t offset, uint64_t length) const {
  const uint64_t end = ((offset >> l1_coverage_bits_) + 1) << l1_coverage_bits_;
  return {RunKind::kUnallocated, false, 0, std::min(length, end - offset)};
}

}  // namespace berth::qcow2
