#include "image/memory/sparse_pages.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <new>

namespace berth {
namespace {

// Pages that one call of ZeroSome() or Extents() touches at most.
constexpr uint64_t kPagesToZero = 2048;
constexpr uint64_t kPagesToLookAt = 131'072;

uint64_t RoundUp(uint64_t value, uint64_t multiple) { return (value / multiple + 1) * multiple; }

template <typename Node>
Node* FindOrMake(std::atomic<Node*>& slot) {
  Node* node = slot.load(std::memory_order_acquire);
  if (node != nullptr) return node;
  std::unique_ptr<Node> fresh(new (std::nothrow) Node());
  if (fresh == nullptr) return nullptr;
  if (!slot.compare_exchange_strong(node, fresh.get(), std::memory_order_acq_rel)) return node;
  return fresh.release();
}

void Append(const Extent& extent, std::vector<Extent>* out, size_t first) {
  if (out->size() > first && out->back().SameKind(extent)) {
    out->back().length += extent.length;
  } else {
    out->push_back(extent);
  }
}

}  // namespace

SparsePages::SparsePages(uint64_t size) : size_(size) { assert(size <= kMaxSize); }

SparsePages::~SparsePages() {
  for (std::atomic<Table*>& table : tables_) delete table.load();
}

SparsePages::Table::~Table() {
  for (std::atomic<Leaf*>& leaf : leaves) delete leaf.load();
}

SparsePages::Leaf* SparsePages::FindLeaf(uint64_t offset, uint64_t* hole_end) const {
  const Table* table = tables_[offset / kTableBytes].load(std::memory_order_acquire);
  if (table == nullptr) {
    *hole_end = RoundUp(offset, kTableBytes);
    return nullptr;
  }
  Leaf* leaf = table->leaves[offset / kLeafBytes % kTableLeaves].load(std::memory_order_acquire);
  if (leaf == nullptr) *hole_end = RoundUp(offset, kLeafBytes);
  return leaf;
}

SparsePages::Leaf* SparsePages::FindOrMakeLeaf(uint64_t offset) {
  Table* table = FindOrMake(tables_[offset / kTableBytes]);
  if (table == nullptr) return nullptr;
  return FindOrMake(table->leaves[offset / kLeafBytes % kTableLeaves]);
}

bool SparsePages::MakePage(Page& page, uint64_t begin, uint64_t end) {
  if (page != nullptr) return true;
  page.reset(new (std::nothrow) uint8_t[kPageSize]);
  if (page == nullptr) return false;
  memset(page.get(), 0, begin);
  memset(page.get() + end, 0, kPageSize - end);
  pages_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void SparsePages::FreePage(Page& page) {
  if (page == nullptr) return;
  page.reset();
  pages_.fetch_sub(1, std::memory_order_relaxed);
}

IoResult SparsePages::Read(uint64_t offset, absl::Span<uint8_t> out) const {
  while (!out.empty()) {
    uint64_t piece = 0;
    uint64_t hole_end = 0;
    if (Leaf* leaf = FindLeaf(offset, &hole_end)) {
      const uint64_t begin = offset % kPageSize;
      piece = std::min<uint64_t>(out.size(), kPageSize - begin);
      MutexLock lock(&leaf->mutex);
      if (const Page& page = leaf->pages[PageIndex(offset)]) {
        memcpy(out.data(), page.get() + begin, piece);
      } else {
        memset(out.data(), 0, piece);
      }
    } else {
      piece = std::min<uint64_t>(out.size(), hole_end - offset);
      memset(out.data(), 0, piece);
    }
    offset += piece;
    out.remove_prefix(piece);
  }
  return offset <= size() ? IoResult::Ok() : IoResult::Error(EIO);
}

IoResult SparsePages::Write(uint64_t offset, absl::Span<const uint8_t> data) {
  if (offset + data.size() > size()) return IoResult::Error(EIO);
  while (!data.empty()) {
    const uint64_t begin = offset % kPageSize;
    const uint64_t piece = std::min<uint64_t>(data.size(), kPageSize - begin);
    Leaf* leaf = FindOrMakeLeaf(offset);
    if (leaf == nullptr) return IoResult::Error(ENOMEM);
    {
      MutexLock lock(&leaf->mutex);
      // Resize() stores the smaller size before it cleans each leaf: whoever sees the old size here comes
      // before that cleaning, so nothing is ever left behind the end.
      if (offset + piece > size()) return IoResult::Error(EIO);
      Page& page = leaf->pages[PageIndex(offset)];
      if (!MakePage(page, begin, begin + piece)) return IoResult::Error(ENOMEM);
      memcpy(page.get() + begin, data.data(), piece);
    }
    offset += piece;
    data.remove_prefix(piece);
  }
  return IoResult::Ok();
}

IoResult SparsePages::ZeroInPage(Leaf& leaf, uint64_t offset, uint64_t length, bool keep_space) {
  const uint64_t begin = offset % kPageSize;
  MutexLock lock(&leaf.mutex);
  if (offset + length > size()) return IoResult::Error(EIO);
  Page& page = leaf.pages[PageIndex(offset)];
  if (!keep_space && (length == kPageSize || page == nullptr)) {
    FreePage(page);
    return IoResult::Ok();
  }
  if (!MakePage(page, begin, begin + length)) return IoResult::Error(ENOMEM);
  memset(page.get() + begin, 0, length);
  return IoResult::Ok();
}

IoResult SparsePages::ZeroSome(uint64_t* offset, uint64_t end, bool keep_space) {
  if (end > size()) return IoResult::Error(EIO);
  for (uint64_t pages = 0; *offset < end && pages < kPagesToZero;) {
    uint64_t hole_end = 0;
    Leaf* leaf = keep_space ? FindOrMakeLeaf(*offset) : FindLeaf(*offset, &hole_end);
    if (leaf == nullptr) {
      if (keep_space) return IoResult::Error(ENOMEM);
      *offset = std::min(end, hole_end);
      continue;
    }
    const uint64_t piece = std::min(end - *offset, kPageSize - *offset % kPageSize);
    if (IoResult result = ZeroInPage(*leaf, *offset, piece, keep_space); !result.ok()) return result;
    *offset += piece;
    ++pages;
  }
  return IoResult::Ok();
}

IoResult SparsePages::Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) const {
  const uint64_t end = offset + length;
  const size_t first = out->size();
  if (end > size()) return IoResult::Error(EIO);
  const size_t full = first + kMaxExtents;
  for (uint64_t pages = 0; offset < end && pages < kPagesToLookAt && out->size() < full;) {
    uint64_t next = 0;
    Leaf* leaf = FindLeaf(offset, &next);
    if (leaf == nullptr) {
      next = std::min(next, end);
      Append({next - offset, /*allocated=*/false, /*zero=*/true}, out, first);
      offset = next;
      continue;
    }
    const uint64_t leaf_end = std::min(end, RoundUp(offset, kLeafBytes));
    MutexLock lock(&leaf->mutex);
    for (; offset < leaf_end && out->size() < full; offset = next, ++pages) {
      next = std::min(leaf_end, RoundUp(offset, kPageSize));
      const bool exists = leaf->pages[PageIndex(offset)] != nullptr;
      Append({next - offset, exists, !exists}, out, first);
    }
  }
  return IoResult::Ok();
}

void SparsePages::Resize(uint64_t size) {
  const uint64_t before = size_.exchange(size, std::memory_order_acq_rel);
  uint64_t offset = size;
  while (offset < before) {
    uint64_t next = 0;
    if (Leaf* leaf = FindLeaf(offset, &next)) {
      const uint64_t begin = offset % kPageSize;
      next = offset - begin + kPageSize;
      MutexLock lock(&leaf->mutex);
      Page& page = leaf->pages[PageIndex(offset)];
      if (begin == 0) {
        FreePage(page);
      } else if (page != nullptr) {
        memset(page.get() + begin, 0, kPageSize - begin);
      }
    }
    offset = next;
  }
}

}  // namespace berth
