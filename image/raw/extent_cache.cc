#include "image/raw/extent_cache.h"

#include <algorithm>
#include <iterator>

namespace berth {

ExtentCache::Look::Look(ExtentCache* cache) : cache_(cache) {
  cache_->looks_.fetch_add(1);
  MutexLock lock(&cache_->mutex_);
  changes_ = cache_->changes_;
}

ExtentCache::Look::~Look() { cache_->looks_.fetch_sub(1); }

uint64_t ExtentCache::Find(uint64_t offset, uint64_t length, std::vector<Extent>* extents) {
  const uint64_t end = offset + length;
  uint64_t position = offset;
  MutexLock lock(&mutex_);
  auto piece = pieces_.upper_bound(position);
  if (piece != pieces_.begin()) --piece;
  for (; piece != pieces_.end() && position < end; ++piece) {
    if (piece->second.end <= position) continue;
    if (piece->first > position) break;
    const uint64_t stop = std::min(end, piece->second.end);
    AppendExtent({stop - position, piece->second.allocated, piece->second.zero}, extents);
    position = stop;
  }
  return position - offset;
}

void ExtentCache::Remember(const Look& look, uint64_t offset, const std::vector<Extent>& extents) {
  MutexLock lock(&mutex_);
  if (changes_ != look.changes_) return;
  if (pieces_.size() + extents.size() > kMostPieces) {
    pieces_.clear();
    zeroes_.store(0);
    if (extents.size() > kMostPieces) return;
  }
  for (const Extent& extent : extents) {
    Cut(offset, offset + extent.length, false);
    Insert(offset, {offset + extent.length, extent.allocated, extent.zero});
    offset += extent.length;
  }
}

void ExtentCache::ForgetZeroes(uint64_t offset, uint64_t length) {
  MutexLock lock(&mutex_);
  ++changes_;
  Cut(offset, offset + length, true);
}

void ExtentCache::Changed(uint64_t offset, uint64_t length) {
  MutexLock lock(&mutex_);
  ++changes_;
  Cut(offset, offset + length, false);
}

void ExtentCache::Clear() {
  MutexLock lock(&mutex_);
  ++changes_;
  pieces_.clear();
  zeroes_.store(0);
}

void ExtentCache::Cut(uint64_t begin, uint64_t end, bool zeroes_only) {
  auto next = pieces_.upper_bound(begin);
  if (next != pieces_.begin()) --next;
  while (next != pieces_.end() && next->first < end) {
    const auto current = next++;
    const uint64_t first = current->first;
    const Piece piece = current->second;
    if (piece.end <= begin || (zeroes_only && !piece.zero)) continue;
    Erase(current);
    if (first < begin) Insert(first, {begin, piece.allocated, piece.zero});
    if (piece.end > end) Insert(end, {piece.end, piece.allocated, piece.zero});
  }
}

void ExtentCache::Insert(uint64_t begin, Piece piece) {
  pieces_.emplace(begin, piece);
  if (piece.zero) zeroes_.fetch_add(1);
}

void ExtentCache::Erase(std::map<uint64_t, Piece>::iterator piece) {
  if (piece->second.zero) zeroes_.fetch_sub(1);
  pieces_.erase(piece);
}

}  // namespace berth
