// DirtyBitmap: which parts of a disk were changed since it was made or cleared; in memory.
//
// Thread-safe. Memory: a bit for each `granularity` bytes of the disk.
#ifndef BERTH_IMAGE_QCOW2_DIRTY_BITMAP_H_
#define BERTH_IMAGE_QCOW2_DIRTY_BITMAP_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "image/block/status_context.h"

namespace berth::qcow2 {

class DirtyBitmap {
 public:
  // Nothing is dirty.
  DirtyBitmap(std::string name, uint32_t granularity_bits, uint64_t disk_size, bool enabled);
  DirtyBitmap(const DirtyBitmap&) = delete;
  DirtyBitmap& operator=(const DirtyBitmap&) = delete;

  const std::string& name() const { return name_; }
  uint32_t granularity_bits() const { return granularity_bits_; }
  uint64_t bits() const { return bits_; }
  // Changes of the disk are noted.
  bool enabled() const { return enabled_.load(); }
  void set_enabled(bool enabled) { enabled_.store(enabled); }
  // It is there no more: its context answers with an error.
  bool deleted() const { return deleted_.load(); }
  void set_deleted() { deleted_.store(true); }

  // Bytes of the disk; the range is not empty and inside of it.
  void MarkDirty(uint64_t offset, uint64_t length);
  void Clear();
  // What is true of the byte `offset` and how many behind it, of at most `length`: 1 dirty, 0 not.
  StatusExtent Run(uint64_t offset, uint64_t length) const;

  // In the file's form: bit b is bit b % 8 of byte b / 8. What is behind the last bit is ignored, and 0.
  void SetBytes(uint64_t first, absl::Span<const uint8_t> bytes);
  // Returns whether a bit is set.
  bool GetBytes(uint64_t first, absl::Span<uint8_t> bytes) const;

 private:
  bool Get(uint64_t bit) const {
    return (words_[bit / 64].load(std::memory_order_relaxed) >> (bit % 64) & 1) != 0;
  }

  const std::string name_;
  const uint32_t granularity_bits_;
  const uint64_t bits_;
  std::atomic<bool> enabled_;
  std::atomic<bool> deleted_{false};
  std::vector<std::atomic<uint64_t>> words_;
};

// "qemu:dirty-bitmap:NAME": 1 where it is dirty.
std::shared_ptr<StatusContext> DirtyBitmapContext(std::shared_ptr<const DirtyBitmap> bitmap);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_DIRTY_BITMAP_H_
