#include "image/qcow2/write_map.h"

#include <algorithm>
#include <cassert>

namespace berth::qcow2 {
WriteMap::WriteMap(const Header& header, std::vector<uint64_t> l1, ClusterAllocator allocator,
                   const std::vector<uint64_t>& metadata, bool has_backing, bool gives_space_back,
                   uint64_t cache_bytes)
    : map_(header, header.l1_table_offset, {}),
      has_backing_(has_backing),
      can_map_zeroes_(map_.layout().zero_flag || map_.layout().extended),
      gives_space_back_(gives_space_back),
      l1_bits_(map_.layout().cluster_bits + map_.layout().l2_bits()),
      // Room for two whole tables, as a change can need all of one.
      capacity_(static_cast<size_t>(std::max(cache_bytes / map_.slice_bytes(),
                                             64 + 2 * map_.layout().cluster_size() / map_.slice_bytes()))),
      l1_(std::move(l1)),
      allocator_(std::move(allocator)),
      metadata_(metadata.begin(), metadata.end()) {
  for (const uint64_t entry : l1_) {
    if (const uint64_t table = entry & kOffsetMask; table != 0) {
      metadata_.insert(table >> map_.layout().cluster_bits);
    }
  }
}

uint64_t WriteMap::SliceOffset(uint64_t table, uint64_t offset) const {
  const uint64_t slices = uint64_t{1} << (l1_bits_ - map_.slice_coverage_bits());
  return table + ((offset >> map_.slice_coverage_bits()) % slices) * map_.slice_bytes();
}

WriteMap::Slice* WriteMap::FindSlice(uint64_t file_offset) {
  const auto found = slices_.find(file_offset);
  if (found == slices_.end()) return nullptr;
  recent_.splice(recent_.begin(), recent_, found->second->recent);
  return found->second.get();
}

WriteMap::Slice& WriteMap::PutSlice(uint64_t file_offset, std::vector<uint64_t> words) {
  std::unique_ptr<Slice>& slice = slices_[file_offset];
  assert(slice == nullptr);
  recent_.push_front(file_offset);
  slice = std::make_unique<Slice>();
  slice->content = {file_offset, std::move(words)};
  slice->recent = recent_.begin();
  return *slice;
}

void WriteMap::MarkDirty(Slice& slice) {
  if (!slice.dirty) ++dirty_;
  slice.dirty = true;
}

void WriteMap::Evict() {
  for (auto at = recent_.end(); slices_.size() > capacity_ && at != recent_.begin();) {
    --at;
    const auto slice = slices_.find(*at);
    if (slice->second->dirty || slice->second->pins > 0) continue;
    slices_.erase(slice);
    at = recent_.erase(at);
  }
}

void WriteMap::AddSlice(uint64_t file_offset, std::vector<uint64_t> words) {
  MutexLock lock(&mutex_);
  // Somebody may have been faster, and have changed it since.
  if (FindSlice(file_offset) != nullptr) return;
  PutSlice(file_offset, std::move(words));
  Evict();
}

WriteMap::Slice* WriteMap::NewTable(uint64_t l1_index, uint64_t offset, uint64_t old_table, Step* step) {
  const uint64_t cluster_size = layout().cluster_size();
  if (old_table != 0) {
    for (uint64_t at = 0; at < cluster_size; at += slice_bytes()) {
      if (FindSlice(old_table + at) != nullptr) continue;
      step->action = Step::Action::kLoad;
      step->hold = epoch_;
      step->file_offset = old_table + at;
      return nullptr;
    }
  }
  const ClusterAllocator::Range range = allocator_.AllocateWhole(1);
  if (range.count == 0) {
    step->action = Step::Action::kFull;
    return nullptr;
  }
  const uint64_t table = range.first << layout().cluster_bits;
  for (uint64_t at = 0; at < cluster_size; at += slice_bytes()) {
    // What was here before the cluster was freed.
    if (const auto stale = slices_.find(table + at); stale != slices_.end()) {
      recent_.erase(stale->second->recent);
      slices_.erase(stale);
    }
    std::vector<uint64_t> words(slice_bytes() / 8);
    if (old_table != 0) words = FindSlice(old_table + at)->content.words;
    Slice& slice = PutSlice(table + at, std::move(words));
    slice.new_table = true;
    MarkDirty(slice);
  }
  metadata_.insert(range.first);
  taken_.push_back(range.first);
  if (old_table != 0) {
    metadata_.erase(old_table >> layout().cluster_bits);
    released_.push_back(old_table >> layout().cluster_bits);
  }
  l1_[l1_index] = table | kCopied;
  dirty_l1_.insert(l1_index);
  return FindSlice(SliceOffset(table, offset));
}

WriteMap::Slice* WriteMap::WritableSlice(uint64_t offset, Step* step) {
  const uint64_t index = offset >> l1_bits_;
  const std::optional<uint64_t> table = L2TableOffset(layout(), l1_[index]);
  if (!table.has_value()) {
    step->action = Step::Action::kFailed;
    return nullptr;
  }
  if (*table == 0 || (l1_[index] & kCopied) == 0) return NewTable(index, offset, *table, step);
  const uint64_t file_offset = SliceOffset(*table, offset);
  Slice* const slice = FindSlice(file_offset);
  if (slice == nullptr) {
    step->action = Step::Action::kLoad;
    step->hold = epoch_;
    step->file_offset = file_offset;
  }
  return slice;
}

WriteMap::Step WriteMap::Find(uint64_t offset, uint64_t length) {
  Step step;
  MutexLock lock(&mutex_);
  const std::optional<uint64_t> table = L2TableOffset(layout(), l1_[offset >> l1_bits_]);
  if (!table.has_value()) return step;
  if (*table == 0) {
    step.run = map_.WithoutTable(offset, length);
  } else {
    const uint64_t file_offset = SliceOffset(*table, offset);
    Slice* const slice = FindSlice(file_offset);
    if (slice == nullptr) {
      step.action = Step::Action::kLoad;
      step.hold = epoch_;
      step.file_offset = file_offset;
      return step;
    }
    step.run = map_.Map(slice->content, offset, length);
  }
  step.action = Step::Action::kRun;
  step.length = step.run.length;
  step.hold = epoch_;
  return step;
}

WriteMap::Batch WriteMap::TakeBatch() {
  Batch batch;
  MutexLock lock(&mutex_);
  for (const auto& [offset, slice] : slices_) {
    if (!slice->dirty) continue;
    (slice->new_table ? batch.new_tables : batch.slices).push_back({offset, slice->content.words});
    slice->dirty = false;
    slice->new_table = false;
  }
  dirty_ = 0;
  for (const uint64_t index : dirty_l1_) batch.l1.emplace_back(index, l1_[index]);
  dirty_l1_.clear();
  batch.taken.swap(taken_);
  batch.released.swap(released_);
  ReleaseQuarantine();
  batch.unused.swap(unused_);
  batch.epoch = first_epoch_ + quarantine_.size();
  quarantine_.push_back({epoch_, false, {}});
  epoch_ = std::make_shared<const Epoch>();
  return batch;
}

void WriteMap::Committed(uint64_t epoch, std::vector<uint64_t> free) {
  MutexLock lock(&mutex_);
  Quarantine& quarantine = quarantine_[epoch - first_epoch_];
  quarantine.committed = true;
  quarantine.clusters = std::move(free);
  ReleaseQuarantine();
  Evict();
}

void WriteMap::Free(const std::vector<uint64_t>& clusters) {
  MutexLock lock(&mutex_);
  for (const uint64_t cluster : clusters) allocator_.Free(cluster);
}

void WriteMap::ReleaseQuarantine() {
  while (!quarantine_.empty() && quarantine_.front().committed && quarantine_.front().users.expired()) {
    for (const uint64_t cluster : quarantine_.front().clusters) {
      if (gives_space_back_) {
        unused_.push_back(cluster);
      } else {
        allocator_.Free(cluster);
      }
    }
    quarantine_.pop_front();
    ++first_epoch_;
  }
}

void WriteMap::Fail() {
  MutexLock lock(&mutex_);
  failed_ = true;
}

bool WriteMap::failed() const {
  MutexLock lock(&mutex_);
  return failed_;
}

uint64_t WriteMap::TakeMetadata(uint64_t count) {
  MutexLock lock(&mutex_);
  const ClusterAllocator::Range range = allocator_.AllocateWhole(count);
  for (uint64_t i = 0; i < range.count; ++i) metadata_.insert(range.first + i);
  return range.count == 0 ? 0 : range.first;
}

uint64_t WriteMap::TakeTable(uint64_t clusters) {
  const uint64_t first = TakeMetadata(clusters);
  if (first == 0) return 0;
  MutexLock lock(&mutex_);
  for (uint64_t i = 0; i < clusters; ++i) taken_.push_back(first + i);
  return first;
}

void WriteMap::GiveBackMetadata(uint64_t first, uint64_t count) {
  MutexLock lock(&mutex_);
  for (uint64_t i = 0; i < count; ++i) {
    metadata_.erase(first + i);
    released_.push_back(first + i);
  }
}

bool WriteMap::NeedsCommit() const {
  MutexLock lock(&mutex_);
  return dirty_ > capacity_ / 2;
}

uint64_t WriteMap::end_cluster() const {
  MutexLock lock(&mutex_);
  return allocator_.end();
}

}  // namespace berth::qcow2
