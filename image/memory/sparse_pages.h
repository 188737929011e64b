// SparsePages: bytes by address, with memory only for the pages that were written.
//
// A fixed tree of three levels: tables of leaves, leaves of pages. Tables and leaves are made when they are
// first needed and stay until the end, so a pointer to one stays valid without a lock; pages come and go
// under their leaf's lock, which is held for one page at a time. No call waits for longer than another
// thread's copy of one page, so all of it may be called on reactors.
//
// Thread-safe. Overlapping calls have no order among each other beyond one page.
#ifndef BERTH_IMAGE_MEMORY_SPARSE_PAGES_H_
#define BERTH_IMAGE_MEMORY_SPARSE_PAGES_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/types/span.h"
#include "image/block/extent.h"
#include "image/io/io_result.h"
#include "image/io/mutex.h"

namespace berth {

class SparsePages {
 public:
  static constexpr uint64_t kPageSize = 4096;
  // 16 TiB: what the tree can address.
  static constexpr uint64_t kMaxSize = uint64_t{1} << 44;

  // `size` is at most kMaxSize.
  explicit SparsePages(uint64_t size);
  SparsePages(const SparsePages&) = delete;
  SparsePages& operator=(const SparsePages&) = delete;
  ~SparsePages();

  uint64_t size() const { return size_.load(std::memory_order_acquire); }
  // Bytes of the pages that exist now.
  uint64_t allocated_bytes() const { return pages_.load(std::memory_order_relaxed) * kPageSize; }

  // EIO for what lies past the size, which may have shrunk since the caller looked; ENOMEM where the system
  // has no memory left. Part of the range may have been written then.
  IoResult Read(uint64_t offset, absl::Span<uint8_t> out) const;
  IoResult Write(uint64_t offset, absl::Span<const uint8_t> data);

  // Zeroes from `*offset` towards `end` and moves `*offset` along; stops early after a millisecond's worth of
  // work or so, to be called again. With `keep_space` every page of the range exists afterwards, else those
  // that the range covers are freed.
  IoResult ZeroSome(uint64_t* offset, uint64_t end, bool keep_space);

  // As BlockChannel::Extents; exact to the page. Looks at 512 MiB of pages at most, and at any length of
  // holes.
  IoResult Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) const;

  // Not to be called by two threads at once. `size` is at most kMaxSize.
  void Resize(uint64_t size);

 private:
  static constexpr uint64_t kLeafPages = 512;
  static constexpr uint64_t kTableLeaves = 4096;
  static constexpr uint64_t kLeafBytes = kLeafPages * kPageSize;
  static constexpr uint64_t kTableBytes = kTableLeaves * kLeafBytes;
  static constexpr uint64_t kTables = kMaxSize / kTableBytes;

  using Page = std::unique_ptr<uint8_t[]>;
  struct Leaf {
    Mutex mutex;
    std::array<Page, kLeafPages> pages ABSL_GUARDED_BY(mutex);
  };
  struct Table {
    std::array<std::atomic<Leaf*>, kTableLeaves> leaves = {};
    ~Table();
  };

  // The leaf of `offset`. Where there is none, null, and `*hole_end` is set to the end of the hole that
  // follows from the tree.
  Leaf* FindLeaf(uint64_t offset, uint64_t* hole_end) const;
  // Null without memory.
  Leaf* FindOrMakeLeaf(uint64_t offset);
  static size_t PageIndex(uint64_t offset) { return (offset / kPageSize) % kLeafPages; }

  // Makes the page exist. What is neither written by the caller afterwards nor zeroed here would be garbage,
  // so
  // `[begin, end)` is the part that the caller overwrites at once; the rest is zeroed. False without memory.
  bool MakePage(Page& page, uint64_t begin, uint64_t end);
  void FreePage(Page& page);
  IoResult ZeroInPage(Leaf& leaf, uint64_t offset, uint64_t length, bool keep_space);

  std::atomic<uint64_t> size_;
  std::atomic<uint64_t> pages_ = 0;
  std::array<std::atomic<Table*>, kTables> tables_ = {};
};

}  // namespace berth

#endif  // BERTH_IMAGE_MEMORY_SPARSE_PAGES_H_
