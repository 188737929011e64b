// What WriteMap decides about requests: where they are written, what is cleared.
#include <algorithm>
#include <bit>
#include <cassert>

#include "image/qcow2/write_map.h"

namespace berth::qcow2 {
namespace {

// The units of a cluster are at most 32.
constexpr uint64_t kAllUnits = 0xffffffff;

}  // namespace

WriteMap::Entry WriteMap::EntryOf(Slice& slice, uint64_t cluster) const {
  std::vector<uint64_t>& words = slice.content.words;
  if (!layout().extended) return {&words[cluster % words.size()], nullptr};
  const size_t at = cluster * 2 % words.size();
  return {&words[at], &words[at + 1]};
}

bool WriteMap::IsOwn(uint64_t entry) const {
  if ((entry & kCompressed) != 0) return false;
  if (layout().external_data) return (entry & (kOffsetMask | kCopied)) != 0;
  return (entry & kCopied) != 0;
}

uint64_t WriteMap::UnitsOf(uint64_t cluster, uint64_t begin, uint64_t end) const {
  const uint64_t cluster_begin = cluster << layout().cluster_bits;
  const uint64_t from = begin <= cluster_begin ? 0 : (begin - cluster_begin) >> layout().unit_bits();
  const uint64_t unit = uint64_t{1} << layout().unit_bits();
  const uint64_t to = std::min(UnitsInCluster(), (end - cluster_begin + unit - 1) >> layout().unit_bits());
  return ((uint64_t{1} << to) - 1) & ~((uint64_t{1} << from) - 1);
}

uint64_t WriteMap::UnitsToCopy(const Entry& entry) const {
  // A standard entry has one unit, which is written as a whole in any case.
  if (entry.subclusters == nullptr || (*entry.descriptor & kCompressed) != 0) return kAllUnits;
  return (*entry.descriptor & kOffsetMask) != 0 ? *entry.subclusters & kAllUnits : 0;
}

bool WriteMap::MayOverwrite(uint64_t host) const {
  if (layout().external_data) return true;
  const uint64_t cluster = host >> layout().cluster_bits;
  return allocator_.IsTaken(cluster) && metadata_.count(cluster) == 0;
}

WriteMap::Allocation* WriteMap::InTheWay(uint64_t first_unit, uint64_t last_unit) {
  auto at = allocations_.upper_bound(last_unit);
  if (at == allocations_.begin()) return nullptr;
  --at;
  return at->second->first_unit + at->second->units > first_unit ? at->second.get() : nullptr;
}

WriteMap::Allocation* WriteMap::InTheWayOfCluster(uint64_t cluster) {
  return InTheWay(cluster * UnitsInCluster(), (cluster + 1) * UnitsInCluster() - 1);
}

bool WriteMap::StartWaiting(uint64_t offset, uint64_t length, Allocation::Waiter waiter) {
  MutexLock lock(&mutex_);
  const uint32_t bits = layout().unit_bits();
  Allocation* const allocation = InTheWay(offset >> bits, (offset + length - 1) >> bits);
  if (allocation == nullptr) return false;
  allocation->waiters.push_back(waiter);
  return true;
}

WriteMap::Step WriteMap::PlanWrite(uint64_t offset, uint64_t length) {
  Step step;
  const uint64_t unit = offset >> layout().unit_bits();
  MutexLock lock(&mutex_);
  if (failed_) return step;
  ReleaseQuarantine();
  if (InTheWay(unit, unit) != nullptr) {
    step.action = Step::Action::kWait;
    step.wait_offset = offset;
    step.length = 1;
    return step;
  }
  Slice* const slice = WritableSlice(offset, &step);
  if (slice == nullptr) return step;
  const uint64_t end = std::min(offset + length, SliceEnd(offset));
  const Run run = map_.Map(slice->content, offset, end - offset);
  if (run.kind == RunKind::kInvalid) return step;
  const bool own = IsOwn(*EntryOf(*slice, offset >> layout().cluster_bits).descriptor);
  if (own && run.kind == RunKind::kData) {
    step.length = OverwritableLength(*slice, offset, run.length);
    if (step.length == 0) return step;
    step.action = Step::Action::kRun;
    step.run = {RunKind::kData, false, run.host, step.length};
    step.hold = epoch_;
    return step;
  }
  auto allocation = std::make_unique<Allocation>();
  allocation->guest = offset >> layout().cluster_bits;
  if (own) {
    if (!PlanReuse(*slice, offset, end, allocation.get())) return step;
  } else if (!PlanClusters(*slice, offset, end, allocation.get())) {
    step.action = Step::Action::kFull;
    return step;
  }
  ++slice->pins;
  allocation->slice = slice;
  step.action = Step::Action::kAllocate;
  step.length = std::min(end, allocation->fill_end) - offset;
  step.allocation = allocation.get();
  step.hold = epoch_;
  allocations_[allocation->first_unit] = std::move(allocation);
  return step;
}

uint64_t WriteMap::OverwritableLength(Slice& slice, uint64_t offset, uint64_t length) {
  const uint32_t bits = layout().cluster_bits;
  uint64_t at = offset;
  while (at < offset + length) {
    const uint64_t entry = *EntryOf(slice, at >> bits).descriptor;
    if (!IsOwn(entry) || !MayOverwrite(entry & kOffsetMask)) break;
    at = ((at >> bits) + 1) << bits;
  }
  return std::min(at, offset + length) - offset;
}

bool WriteMap::PlanReuse(Slice& slice, uint64_t offset, uint64_t end, Allocation* allocation) {
  const uint32_t bits = layout().unit_bits();
  const uint64_t cluster_end = (allocation->guest + 1) << layout().cluster_bits;
  const uint64_t host = *EntryOf(slice, allocation->guest).descriptor & kOffsetMask;
  if (!MayOverwrite(host)) return false;
  allocation->count = 1;
  allocation->host = host >> layout().cluster_bits;
  allocation->reused = true;
  allocation->first_unit = offset >> bits;
  allocation->units = 1;
  while (true) {
    const uint64_t next = allocation->first_unit + allocation->units;
    if (next << bits >= std::min(end, cluster_end) || InTheWay(next, next) != nullptr) break;
    const RunKind kind = map_.Map(slice.content, next << bits, 1).kind;
    if (kind == RunKind::kData || kind == RunKind::kInvalid) break;
    ++allocation->units;
  }
  allocation->fill_begin = allocation->first_unit << bits;
  allocation->fill_end = (allocation->first_unit + allocation->units) << bits;
  return true;
}

bool WriteMap::PlanClusters(Slice& slice, uint64_t offset, uint64_t end, Allocation* allocation) {
  const uint32_t bits = layout().cluster_bits;
  const uint64_t first = allocation->guest;
  uint64_t count = 1;
  while (first + count <= (end - 1) >> bits && InTheWayOfCluster(first + count) == nullptr) {
    if (IsOwn(*EntryOf(slice, first + count).descriptor) ||
        map_.Map(slice.content, (first + count) << bits, 1).kind == RunKind::kInvalid) {
      break;
    }
    ++count;
  }
  if (layout().external_data) {
    // The place of a cluster is the one that the guest sees it at.
    allocation->host = first;
    allocation->reused = true;
  } else {
    const ClusterAllocator::Range range = allocator_.Allocate(count);
    if (range.count == 0) return false;
    allocation->host = range.first;
    count = range.count;
    for (uint64_t i = 0; i < count; ++i) taken_.push_back(range.first + i);
  }
  const uint64_t last = first + count - 1;
  end = std::min(end, (last + 1) << bits);
  allocation->count = count;
  allocation->first_unit = first * UnitsInCluster();
  allocation->units = count * UnitsInCluster();
  // What of the first and of the last cluster has a value that would be lost.
  const uint64_t begins = (UnitsOf(first, offset, end) | UnitsToCopy(EntryOf(slice, first)));
  const uint64_t ends = (UnitsOf(last, offset, end) | UnitsToCopy(EntryOf(slice, last)));
  const auto low = static_cast<uint64_t>(std::countr_zero(begins));
  const auto high = static_cast<uint64_t>(std::bit_width(ends & ((uint64_t{1} << UnitsInCluster()) - 1)));
  allocation->fill_begin = (first << bits) + (low << layout().unit_bits());
  allocation->fill_end = (last << bits) + (high << layout().unit_bits());
  return true;
}

void WriteMap::ReleaseMapping(uint64_t entry) {
  if (layout().external_data) return;
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

// What was filled of the cluster with this index in the allocation.
void WriteMap::EnterMapping(Slice& slice, const Allocation& allocation, uint64_t index) {
  const uint64_t cluster = allocation.guest + index;
  const Entry entry = EntryOf(slice, cluster);
  const bool was_compressed = (*entry.descriptor & kCompressed) != 0;
  if (!allocation.reused) ReleaseMapping(*entry.descriptor);
  *entry.descriptor = (allocation.host + index) << layout().cluster_bits | kCopied;
  if (entry.subclusters != nullptr) {
    const uint64_t filled = UnitsOf(cluster, allocation.fill_begin, allocation.fill_end);
    const uint64_t kept = was_compressed ? 0 : *entry.subclusters;
    *entry.subclusters = (kept | filled) & ~(filled << kSubclusters);
  }
  MarkDirty(slice);
}

void WriteMap::Finish(Allocation* allocation, bool written) {
  std::vector<Allocation::Waiter> waiters;
  {
    MutexLock lock(&mutex_);
    Slice& slice = *static_cast<Slice*>(allocation->slice);
    --slice.pins;
    for (uint64_t i = 0; i < allocation->count; ++i) {
      const uint64_t host = allocation->host + i;
      if (written) {
        EnterMapping(slice, *allocation, i);
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
    allocations_.erase(allocation->first_unit);
  }
  for (const Allocation::Waiter& waiter : waiters) {
    waiter.reactor->Post([handle = waiter.handle] { handle.resume(); });
  }
}

bool WriteMap::ClearUnits(Slice& slice, uint64_t cluster, uint64_t units, bool discard) {
  const Entry entry = EntryOf(slice, cluster);
  if (entry.subclusters == nullptr) {
    const uint64_t cleared = has_backing_ ? kReadsAsZero : 0;
    if (*entry.descriptor == cleared || (discard && *entry.descriptor == 0)) return true;
    ReleaseMapping(*entry.descriptor);
    *entry.descriptor = cleared;
    MarkDirty(slice);
    return true;
  }
  const bool whole = units == kAllUnits;
  const bool compressed = (*entry.descriptor & kCompressed) != 0;
  if (compressed && !whole) return false;
  const uint64_t allocated = compressed ? kAllUnits : *entry.subclusters & kAllUnits;
  const uint64_t zeroes = compressed ? 0 : *entry.subclusters >> kSubclusters;
  // Nothing may shine through from below that was not seen before.
  const uint64_t become_zero = !has_backing_ ? 0 : discard ? units & allocated : units;
  const uint64_t left = allocated & ~units;
  const uint64_t bitmap = left | ((has_backing_ ? zeroes | become_zero : zeroes & ~units) << kSubclusters);
  uint64_t descriptor = *entry.descriptor;
  // Space that was set aside and never used goes with a request for all of it only.
  if (left == 0 && (whole || allocated != 0)) descriptor = 0;
  if (descriptor == *entry.descriptor && bitmap == *entry.subclusters) return true;
  if (descriptor == 0) ReleaseMapping(*entry.descriptor);
  *entry.descriptor = descriptor;
  *entry.subclusters = bitmap;
  MarkDirty(slice);
  return true;
}

WriteMap::Step WriteMap::PlanClear(uint64_t offset, uint64_t length, bool discard) {
  Step step;
  const uint32_t bits = layout().cluster_bits;
  MutexLock lock(&mutex_);
  if (failed_) return step;
  step.action = Step::Action::kDone;
  const uint64_t l1_end = ((offset >> l1_bits_) + 1) << l1_bits_;
  if ((l1_[offset >> l1_bits_] & kOffsetMask) == 0 && (discard || !has_backing_)) {
    step.length = std::min(length, l1_end - offset);
    return step;
  }
  if (has_backing_ && !can_map_zeroes_) {
    step.action = discard ? Step::Action::kDone : Step::Action::kByWriting;
    step.length = length;
    return step;
  }
  uint64_t cluster = offset >> bits;
  if (InTheWayOfCluster(cluster) != nullptr) {
    step.action = Step::Action::kWait;
    step.wait_offset = cluster << bits;
    step.length = layout().cluster_size();
    return step;
  }
  Slice* const slice = WritableSlice(offset, &step);
  if (slice == nullptr) return step;
  const uint64_t end = std::min(offset + length, SliceEnd(offset));
  for (; cluster <= (end - 1) >> bits && InTheWayOfCluster(cluster) == nullptr; ++cluster) {
    if (ClearUnits(*slice, cluster, UnitsOf(cluster, offset, end), discard)) continue;
    if (cluster == offset >> bits) {
      if (!discard) step.action = Step::Action::kByWriting;
      ++cluster;
    }
    break;
  }
  step.length = std::min(end, cluster << bits) - offset;
  return step;
}

}  // namespace berth::qcow2
