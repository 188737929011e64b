#include "image/qcow2/cluster_allocator.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace berth::qcow2 {

void ClusterAllocator::MarkTaken(uint64_t cluster) {
  assert(cluster < limit_);
  if (cluster / 64 >= taken_.size()) taken_.resize(cluster / 64 + 1);
  uint64_t& word = taken_[cluster / 64];
  const uint64_t bit = uint64_t{1} << (cluster % 64);
  if ((word & bit) == 0) ++count_;
  word |= bit;
  end_ = std::max(end_, cluster + 1);
}

uint64_t ClusterAllocator::FindFree(uint64_t begin, uint64_t end) const {
  for (uint64_t at = begin; at < end;) {
    const uint64_t word = at / 64;
    if (word >= taken_.size()) return at;
    const uint64_t free = ~taken_[word] >> (at % 64);
    if (free != 0) return std::min(end, at + static_cast<uint64_t>(std::countr_zero(free)));
    at = (word + 1) * 64;
  }
  return end;
}

uint64_t ClusterAllocator::RunLength(uint64_t first, uint64_t end, uint64_t wanted) const {
  uint64_t length = 0;
  while (length < wanted && first + length < end && !IsTaken(first + length)) ++length;
  return length;
}

ClusterAllocator::Range ClusterAllocator::Take(uint64_t first, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) MarkTaken(first + i);
  next_ = first + count;
  return {first, count};
}

ClusterAllocator::Range ClusterAllocator::Allocate(uint64_t wanted) {
  if (count_ < end_) {
    for (const auto& [begin, end] : {std::pair{std::min(next_, end_), end_}, std::pair{uint64_t{0}, next_}}) {
      const uint64_t stop = std::min(end, end_);
      const uint64_t first = FindFree(begin, stop);
      if (first < stop) return Take(first, RunLength(first, stop, wanted));
    }
  }
  return Take(end_, std::min(wanted, limit_ - end_));
}

ClusterAllocator::Range ClusterAllocator::AllocateWhole(uint64_t count) {
  for (uint64_t at = FindFree(0, end_); at < end_ && count_ < end_;) {
    const uint64_t length = RunLength(at, end_, count);
    if (length == count) return Take(at, count);
    at = FindFree(at + length, end_);
  }
  if (count > limit_ - end_) return {};
  return Take(end_, count);
}

uint64_t ClusterAllocator::FindTaken(uint64_t begin, uint64_t end) const {
  for (uint64_t at = begin; at < std::min<uint64_t>(end, taken_.size() * 64); at = (at / 64 + 1) * 64) {
    const uint64_t word = taken_[at / 64] >> (at % 64);
    if (word != 0) return std::min(end, at + static_cast<uint64_t>(std::countr_zero(word)));
  }
  return end;
}

uint64_t ClusterAllocator::TrimEnd() {
  while (!taken_.empty() && taken_.back() == 0) taken_.pop_back();
  end_ = taken_.empty() ? 0 : taken_.size() * 64 - static_cast<uint64_t>(std::countl_zero(taken_.back()));
  next_ = std::min(next_, end_);
  return end_;
}

void ClusterAllocator::Free(uint64_t cluster) {
  assert(IsTaken(cluster));
  taken_[cluster / 64] &= ~(uint64_t{1} << (cluster % 64));
  --count_;
}

}  // namespace berth::qcow2
