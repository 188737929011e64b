#include "image/qcow2/l2_cache.h"

#include <algorithm>
#include <utility>

namespace berth::qcow2 {

L2Cache::L2Cache(uint64_t bytes, uint64_t slice_bytes)
    : capacity_(static_cast<size_t>(std::max<uint64_t>(bytes / slice_bytes, 1))) {}

std::shared_ptr<const L2Slice> L2Cache::Find(uint64_t file_offset) {
  MutexLock lock(&mutex_);
  const auto found = slices_.find(file_offset);
  if (found == slices_.end()) return nullptr;
  recent_.splice(recent_.begin(), recent_, found->second);
  return recent_.front();
}

std::shared_ptr<const L2Slice> L2Cache::Insert(L2Slice slice) {
  auto shared = std::make_shared<const L2Slice>(std::move(slice));
  MutexLock lock(&mutex_);
  const auto [place, inserted] = slices_.try_emplace(shared->file_offset, recent_.end());
  if (!inserted) return *place->second;
  recent_.push_front(shared);
  place->second = recent_.begin();
  if (slices_.size() > capacity_) {
    slices_.erase(recent_.back()->file_offset);
    recent_.pop_back();
  }
  return shared;
}

size_t L2Cache::size() const {
  MutexLock lock(&mutex_);
  return slices_.size();
}

}  // namespace berth::qcow2
