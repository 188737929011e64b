#include "image/qcow2/write_map.h"

#include <algorithm>
#include <cassert>

namespace berth::qcow2 {
namespace {

bool IsCopiedData(uint64_t entry) {
  return (entry & kCopied) != 0 && (entry & (kCompressed | kReadsAsZero)) == 0;
}
// A cluster stands behind the zeroes, and nothing else uses it.
bool IsCopiedZero(uint64_t entry) {
  return (entry & kCopied) != 0 && (entry & kCompressed) == 0 && (entry & kReadsAsZero) != 0;
}

}  // namespace

WriteMap::WriteMap(const Header& header, std::vector<uint64_t> l1, ClusterAllocator allocator,
                   const std::vector<uint64_t>& metadata, bool has_backing, bool gives_space_back,
                   uint64_t cache_bytes)
    : map_(header, header.l1_table_offset, {}),
      has_backing_(has_backing),
      zero_flag_(map_.layout().zero_flag),
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

uint64_t& WriteMap::Entry(Slice& slice, uint64_t cluster) {
  return slice.content.words[cluster % slice.content.words.size()];
}

WriteMap::Slice* WriteMap::NewTable(uint64_t l1_index, uint64_t offset, uint64_t old_table, Step* step) {
  const uint64_t cluster_size = layout().cluster_size();
  if (old_table != 0) {
    for (uint64_t at = 0; at < cluster_size; at += slice_bytes()) {
      if (FindSlice(old_table + at) != nullptr) continue;
      step->action = Step::Action::kLoad;
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

bool WriteMap::MayOverwrite(uint64_t host) const {
  const uint64_t cluster = host >> layout().cluster_bits;
  return allocator_.IsTaken(cluster) && metadata_.count(cluster) == 0;
}

WriteMap::Allocation* WriteMap::InTheWay(uint64_t first, uint64_t last) {
  auto at = allocations_.upper_bound(last);
  if (at == allocations_.begin()) return nullptr;
  --at;
  return at->second->guest + at->second->count > first ? at->second.get() : nullptr;
}

bool WriteMap::StartWaiting(uint64_t offset, uint64_t length, Allocation::Waiter waiter) {
  MutexLock lock(&mutex_);
  const uint32_t bits = layout().cluster_bits;
  Allocation* const allocation = InTheWay(offset >> bits, (offset + length - 1) >> bits);
  if (allocation == nullptr) return false;
  allocation->waiters.push_back(waiter);
  return true;
}

WriteMap::Step WriteMap::PlanWrite(uint64_t offset, uint64_t length) {
  Step step;
  const uint32_t bits = layout().cluster_bits;
  const uint64_t first = offset >> bits;
  const uint64_t in_cluster = offset & (layout().cluster_size() - 1);
  MutexLock lock(&mutex_);
  if (failed_) return step;
  ReleaseQuarantine();
  if (InTheWay(first, first) != nullptr) {
    step.action = Step::Action::kWait;
    step.length = 1;
    return step;
  }
  Slice* const slice = WritableSlice(offset, &step);
  if (slice == nullptr) return step;
  const uint64_t slice_end = ((offset >> map_.slice_coverage_bits()) + 1) << map_.slice_coverage_bits();
  const uint64_t end = std::min(offset + length, slice_end);
  const uint64_t last = (end - 1) >> bits;
  const uint64_t entry = Entry(*slice, first);
  if (map_.Map(slice->content, offset, 1).kind == RunKind::kInvalid) return step;
  if (IsCopiedData(entry)) {
    const uint64_t host = entry & kOffsetMask;
    uint64_t count = 0;
    while (first + count <= last) {
      const uint64_t next = Entry(*slice, first + count);
      if (!IsCopiedData(next) || (next & kOffsetMask) != host + (count << bits) ||
          !MayOverwrite(next & kOffsetMask)) {
        break;
      }
      ++count;
    }
    if (count == 0) return step;
    step.action = Step::Action::kRun;
    step.length = std::min(end, (first + count) << bits) - offset;
    step.run = {RunKind::kData, false, host + in_cluster, step.length};
    step.hold = epoch_;
    return step;
  }
  auto allocation = std::make_unique<Allocation>();
  allocation->guest = first;
  if (IsCopiedZero(entry)) {
    if (!MayOverwrite(entry & kOffsetMask)) return step;
    allocation->host = (entry & kOffsetMask) >> bits;
    allocation->count = 1;
    allocation->reused = true;
  } else {
    uint64_t wanted = 1;
    while (first + wanted <= last && InTheWay(first + wanted, first + wanted) == nullptr) {
      const uint64_t next = Entry(*slice, first + wanted);
      if (IsCopiedData(next) || IsCopiedZero(next)) break;
      ++wanted;
    }
    const ClusterAllocator::Range range = allocator_.Allocate(wanted);
    if (range.count == 0) {
      step.action = Step::Action::kFull;
      return step;
    }
    allocation->host = range.first;
    allocation->count = range.count;
    for (uint64_t i = 0; i < range.count; ++i) taken_.push_back(range.first + i);
  }
  ++slice->pins;
  allocation->slice = slice;
  step.action = Step::Action::kAllocate;
  step.length = std::min(end, (first + allocation->count) << bits) - offset;
  step.allocation = allocation.get();
  step.hold = epoch_;
  allocations_[first] = std::move(allocation);
  return step;
}

void WriteMap::ReleaseMapping(uint64_t entry) {
  const uint32_t bits = layout().cluster_bits;
  uint64_t first = 0;
  uint64_t last = 0;
  if ((entry & kCompressed) != 0) {
    const std::optional<CompressedExtent> extent = DecodeCompressed(layout(), entry);
    if (!extent.has_value()) return;
    first = extent->offset >> bits;
    last = (extent->offset + extent->length - 1) >> bits;
  } else if ((entry & kOffsetMask) != 0) {
    first = last = (entry & kOffsetMask) >> bits;
  } else {
    return;
  }
  for (uint64_t cluster = first; cluster <= last; ++cluster) {
    // Never what a broken entry claims of others.
    if (MayOverwrite(cluster << bits)) released_.push_back(cluster);
  }
}

void WriteMap::Finish(Allocation* allocation, bool written) {
  std::vector<Allocation::Waiter> waiters;
  {
    MutexLock lock(&mutex_);
    const uint32_t bits = layout().cluster_bits;
    Slice& slice = *static_cast<Slice*>(allocation->slice);
    --slice.pins;
    for (uint64_t i = 0; i < allocation->count; ++i) {
      const uint64_t host = allocation->host + i;
      if (written) {
        uint64_t& entry = Entry(slice, allocation->guest + i);
        if (!allocation->reused) ReleaseMapping(entry);
        entry = host << bits | kCopied;
        MarkDirty(slice);
      } else if (!allocation->reused) {
        const auto taken = std::find(taken_.begin(), taken_.end(), host);
        if (taken != taken_.end()) {
          taken_.erase(taken);
          allocator_.Free(host);
        } else {
          released_.push_back(host);
        }
      }
    }
    waiters = std::move(allocation->waiters);
    allocations_.erase(allocation->guest);
  }
  for (const Allocation::Waiter& waiter : waiters) {
    waiter.reactor->Post([handle = waiter.handle] { handle.resume(); });
  }
}

WriteMap::Step WriteMap::PlanClear(uint64_t offset, uint64_t length, bool discard) {
  Step step;
  const uint32_t bits = layout().cluster_bits;
  const uint64_t first = offset >> bits;
  MutexLock lock(&mutex_);
  if (failed_) return step;
  step.action = Step::Action::kDone;
  const uint64_t l1_end = ((offset >> l1_bits_) + 1) << l1_bits_;
  if ((l1_[offset >> l1_bits_] & kOffsetMask) == 0 && (discard || !has_backing_)) {
    step.length = std::min(length, l1_end - offset);
    return step;
  }
  if (has_backing_ && !zero_flag_) {
    step.action = discard ? Step::Action::kDone : Step::Action::kByWriting;
    step.length = length;
    return step;
  }
  if (InTheWay(first, first) != nullptr) {
    step.action = Step::Action::kWait;
    step.length = 1;
    return step;
  }
  Slice* const slice = WritableSlice(offset, &step);
  if (slice == nullptr) return step;
  const uint64_t slice_end = ((offset >> map_.slice_coverage_bits()) + 1) << map_.slice_coverage_bits();
  const uint64_t end = std::min(offset + length, slice_end);
  const uint64_t cleared = has_backing_ ? kReadsAsZero : 0;
  uint64_t cluster = first;
  for (; cluster <= (end - 1) >> bits && InTheWay(cluster, cluster) == nullptr; ++cluster) {
    uint64_t& entry = Entry(*slice, cluster);
    if (entry == cleared || (discard && entry == 0)) continue;
    ReleaseMapping(entry);
    entry = cleared;
    MarkDirty(*slice);
  }
  step.length = std::min(end, cluster << bits) - offset;
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
