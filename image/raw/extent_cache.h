// ExtentCache: what was learned about where an image file has data, holes, and space that reads as zeroes.
//
// Asking the file system is slow (13 ms for 1 GiB of data on tmpfs), and clients ask for the map of a whole
// image piece by piece. What is known is right as long as every change to the file is announced here after it
// was made; a look that was under way during a change is not remembered. What nobody announces, another
// program's changes, must be kept out by the image's lock.
//
// Thread-safe. While nothing is remembered and nobody is looking, announcing a write costs two atomic loads.
#ifndef BERTH_IMAGE_RAW_EXTENT_CACHE_H_
#define BERTH_IMAGE_RAW_EXTENT_CACHE_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "image/block/extent.h"
#include "image/io/mutex.h"

namespace berth {

class ExtentCache {
 public:
  // More pieces than this are not remembered.
  static constexpr size_t kMostPieces = 4096;

  // A look at the file: made before the first system call, and given to Remember() after the last.
  class Look {
   public:
    explicit Look(ExtentCache* cache);
    Look(const Look&) = delete;
    Look& operator=(const Look&) = delete;
    ~Look();

   private:
    friend class ExtentCache;
    ExtentCache* const cache_;
    uint64_t changes_;  // That had been announced when the look began.
  };

  // Appends what is known about [offset, offset + length) up to the first gap; returns how many bytes that
  // is.
  uint64_t Find(uint64_t offset, uint64_t length, std::vector<Extent>* extents);

  // Remembers what `look` saw from `offset` on, unless something changed meanwhile.
  void Remember(const Look& look, uint64_t offset, const std::vector<Extent>& extents);

  // After data was written: what was zero there is so no more.
  void Written(uint64_t offset, uint64_t length) {
    if (looks_.load() != 0 || zeroes_.load() != 0) ForgetZeroes(offset, length);
  }

  // After a zero or a discard: nothing is known about the range.
  void Changed(uint64_t offset, uint64_t length);

  void Clear();

 private:
  struct Piece {
    uint64_t end;
    bool allocated;
    bool zero;
  };

  void ForgetZeroes(uint64_t offset, uint64_t length);
  void Cut(uint64_t begin, uint64_t end, bool zeroes_only) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Insert(uint64_t begin, Piece piece) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Erase(std::map<uint64_t, Piece>::iterator piece) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Sequentially consistent, as a writer looks at them after its system call while a look announces itself
  // before its own: one of the two sees the other. What a look saw as zero is counted before the look ends.
  std::atomic<uint32_t> looks_ = 0;
  std::atomic<uint32_t> zeroes_ = 0;

  Mutex mutex_;
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, Piece> pieces_ ABSL_GUARDED_BY(mutex_);  // By where they begin; they do not overlap.
};

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_EXTENT_CACHE_H_
