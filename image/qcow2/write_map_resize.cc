// What WriteMap decides when the disk gets another size.
#include <algorithm>
#include <cassert>

#include "image/qcow2/write_map.h"

namespace berth::qcow2 {

WriteMap::Step WriteMap::PlanCut(uint64_t offset, uint64_t length) {
  Step step;
  const uint32_t bits = layout().cluster_bits;
  MutexLock lock(&mutex_);
  if (failed_) return step;
  const uint64_t index = offset >> l1_bits_;
  const uint64_t l1_end = (index + 1) << l1_bits_;
  const std::optional<uint64_t> table = L2TableOffset(layout(), l1_[index]);
  if (!table.has_value()) return step;
  if (*table == 0) {
    step.action = Step::Action::kDone;
    step.length = std::min(length, l1_end - offset);
    return step;
  }
  if (offset == index << l1_bits_ && length >= l1_end - offset) return CutTable(index, *table);
  Slice* const slice = WritableSlice(offset, &step);
  if (slice == nullptr) return step;
  const uint64_t end = std::min(offset + length, SliceEnd(offset));
  for (uint64_t cluster = offset >> bits; cluster < end >> bits; ++cluster) {
    assert(InTheWayOfCluster(cluster) == nullptr);
    const Entry entry = EntryOf(*slice, cluster);
    if (*entry.descriptor == 0 && (entry.subclusters == nullptr || *entry.subclusters == 0)) continue;
    ReleaseMapping(*entry.descriptor);
    *entry.descriptor = 0;
    if (entry.subclusters != nullptr) *entry.subclusters = 0;
    MarkDirty(*slice);
  }
  step.action = Step::Action::kDone;
  step.length = end - offset;
  return step;
}

WriteMap::Step WriteMap::CutTable(uint64_t l1_index, uint64_t table) {
  Step step;
  const uint64_t cluster_size = layout().cluster_size();
  for (uint64_t at = table; at < table + cluster_size; at += slice_bytes()) {
    if (FindSlice(at) != nullptr) continue;
    step.action = Step::Action::kLoad;
    step.hold = epoch_;
    step.file_offset = at;
    return step;
  }
  for (uint64_t at = table; at < table + cluster_size; at += slice_bytes()) {
    const auto slice = slices_.find(at);
    assert(slice->second->pins == 0);
    const std::vector<uint64_t>& words = slice->second->content.words;
    // Also of a table that a snapshot has too: each way to a cluster counts.
    for (size_t i = 0; i < words.size(); i += layout().entry_words()) ReleaseMapping(words[i]);
    if (slice->second->dirty) --dirty_;
    recent_.erase(slice->second->recent);
    slices_.erase(slice);
  }
  metadata_.erase(table >> layout().cluster_bits);
  released_.push_back(table >> layout().cluster_bits);
  l1_[l1_index] = 0;
  dirty_l1_.insert(l1_index);
  step.action = Step::Action::kDone;
  step.length = uint64_t{1} << l1_bits_;
  return step;
}

void WriteMap::GrowL1(uint64_t entries) {
  MutexLock lock(&mutex_);
  if (entries > l1_.size()) l1_.resize(entries);
}

uint64_t WriteMap::l1_entries() const {
  MutexLock lock(&mutex_);
  return l1_.size();
}

uint64_t WriteMap::NextTable(uint64_t offset) const {
  MutexLock lock(&mutex_);
  for (uint64_t index = offset >> l1_bits_; index < l1_.size(); ++index) {
    if (l1_[index] != 0) return std::max(offset, index << l1_bits_);
  }
  return std::max(offset, l1_.size() << l1_bits_);
}

bool WriteMap::NothingElseTaken(uint64_t first, uint64_t count, uint64_t own) const {
  MutexLock lock(&mutex_);
  const uint64_t end = first + count;
  uint64_t taken = allocator_.FindTaken(first, end);
  if (taken == own) taken = allocator_.FindTaken(own + 1, end);
  return taken == end;
}

void WriteMap::FreeMetadata(uint64_t cluster) {
  MutexLock lock(&mutex_);
  metadata_.erase(cluster);
  allocator_.Free(cluster);
}

uint64_t WriteMap::TrimEnd() {
  MutexLock lock(&mutex_);
  return allocator_.TrimEnd();
}

}  // namespace berth::qcow2
