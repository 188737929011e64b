// DirectFile: a file opened with O_DIRECT, read and written at any offset, length and buffer address.
//
// What is aligned goes straight through. The rest goes through an aligned bounce buffer of at most a mebibyte
// at a time, and a write of a part of a block reads the block first, alone on it (RangeLock).
//
// Where the size is no multiple of the block, O_DIRECT cannot write the last block without making the file
// longer. The page that holds the file's end is then only ever read and written through a second descriptor
// that caches; durability and order are those of the file.
//
// Thread-safe. Lifetime: outlives its operations; the files outlive it.
#ifndef BERTH_IMAGE_RAW_DIRECT_FILE_H_
#define BERTH_IMAGE_RAW_DIRECT_FILE_H_

#include <cstdint>

#include "absl/types/span.h"
#include "image/io/file.h"
#include "image/io/io_result.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/raw/range_lock.h"

namespace berth {

// Powers of two, in bytes.
struct DirectAlignment {
  uint32_t memory = 4096;
  uint32_t offset = 4096;
};

class DirectFile {
 public:
  // `direct` has O_DIRECT; `cached` is the same file without.
  DirectFile(const File& direct, const File& cached, DirectAlignment alignment)
      : direct_(direct), cached_(cached), alignment_(alignment) {}

  // As File's, in a file of `size` bytes. The range lies inside it. `rw_flags` do not reach the part that
  // TouchesTail() is about: the caller makes that durable.
  Task<IoResult> Read(Reactor& reactor, uint64_t size, uint64_t offset, absl::Span<uint8_t> out);
  Task<IoResult> Write(Reactor& reactor, uint64_t size, uint64_t offset, absl::Span<const uint8_t> data,
                       int rw_flags);

  // Whether the range reaches into the page that is written through the cache.
  bool TouchesTail(uint64_t size, uint64_t offset, uint64_t length) const {
    return offset + length > TailBegin(size);
  }

  // Held while something else than a write changes [offset, offset + length).
  RangeLock& ranges() { return ranges_; }

 private:
  bool Aligned(uint64_t offset, const void* memory, uint64_t length) const;
  uint64_t TailBegin(uint64_t size) const;
  uint64_t RoundDown(uint64_t offset) const { return offset & ~uint64_t{alignment_.offset - 1}; }
  uint64_t RoundUp(uint64_t offset) const { return RoundDown(offset + alignment_.offset - 1); }

  Task<IoResult> ReadSplit(Reactor& reactor, uint64_t tail, uint64_t offset, absl::Span<uint8_t> out);
  Task<IoResult> ReadBounced(Reactor& reactor, uint64_t offset, absl::Span<uint8_t> out);
  Task<IoResult> WriteSplit(Reactor& reactor, uint64_t tail, uint64_t offset, absl::Span<const uint8_t> data,
                            int rw_flags);
  Task<IoResult> WriteBounced(Reactor& reactor, uint64_t offset, absl::Span<const uint8_t> data,
                              int rw_flags);
  Task<IoResult> WriteChunk(Reactor& reactor, uint64_t offset, absl::Span<const uint8_t> data,
                            absl::Span<uint8_t> bounce, int rw_flags);

  const File& direct_;
  const File& cached_;
  const DirectAlignment alignment_;
  RangeLock ranges_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_DIRECT_FILE_H_
