// FileSpace: giving a file's space back and zeroing it without writing, by fallocate(2), or by a disk's own
// commands. What the file system turned out not to know is remembered and not asked for again.
//
// Thread-safe. Lifetime: outlives its operations; the file outlives it.
#ifndef BERTH_IMAGE_RAW_FILE_SPACE_H_
#define BERTH_IMAGE_RAW_FILE_SPACE_H_

#include <atomic>
#include <cstdint>

#include "image/io/blocking_pool.h"
#include "image/io/file.h"
#include "image/io/io_result.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/raw/disk_facts.h"

namespace berth {

class FileSpace {
 public:
  // Probes what can be done, without an effect on the file. `pool` is for what has no place in a ring.
  FileSpace(const File& file, const DiskFacts& facts, bool writable, BlockingPool& pool);

  // What is true after the probe, for the traits.
  bool can_discard() const { return facts_.is_block_device ? facts_.can_discard : can_punch_.load(); }
  bool zeroes_fast(bool may_unmap) const { return can_zero_in_place_ || (may_unmap && can_punch_.load()); }

  // Ranges for Zero() are multiples of this.
  uint32_t granularity() const { return facts_.is_block_device ? facts_.block_size : 1; }

  // Makes the range read as zeroes. ENOTSUP, with nothing changed, where that takes writing them;
  // with `fast_only` also where it may be as slow.
  Task<IoResult> Zero(Reactor& reactor, uint64_t offset, uint64_t length, bool may_unmap, bool fast_only);

  // Gives the range's space back, as far as that is possible. Any range.
  Task<IoResult> Discard(Reactor& reactor, uint64_t offset, uint64_t length);

 private:
  void Probe();
  Task<IoResult> ZeroDisk(Reactor& reactor, uint64_t offset, uint64_t length, bool may_unmap, bool fast_only);
  Task<IoResult> DiscardDisk(Reactor& reactor, uint64_t offset, uint64_t length);

  const File& file_;
  const DiskFacts facts_;
  BlockingPool& pool_;
  std::atomic<bool> can_punch_ = false;  // Of a disk: zero a range with a command that may unmap it.
  std::atomic<bool> may_know_zero_range_ = true;
  bool can_zero_in_place_ = false;
};

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_FILE_SPACE_H_
