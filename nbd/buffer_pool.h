// BufferPool: memory for payloads, allocated once and handed round.
//
// A pool belongs to a thread, as the connections of a reactor share what is warm in its cache. Buffers are
// aligned to pages, so that O_DIRECT takes them as they are, and come in powers of two.
//
// Thread: a pool and its buffers are confined to one. Lifetime: outlives its buffers; OfThisThread() lives as
// long as its thread.
#ifndef BERTH_NBD_BUFFER_POOL_H_
#define BERTH_NBD_BUFFER_POOL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace berth::nbd {

class BufferPool;

namespace buffer_internal {
struct Block {
  BufferPool* pool;
  uint8_t* data;
  size_t capacity;
  uint32_t references;
  uint32_t size_class;
  size_t* charged_to;
  Block* next;
};
}  // namespace buffer_internal

// A counted reference to memory of a pool; copies share the memory.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer& other) : block_(other.block_) {
    if (block_ != nullptr) ++block_->references;
  }
  Buffer(Buffer&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  Buffer& operator=(Buffer other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~Buffer() {
    if (block_ != nullptr && --block_->references == 0) Release();
  }

  explicit operator bool() const { return block_ != nullptr; }
  uint8_t* data() const { return block_->data; }
  size_t capacity() const { return block_->capacity; }
  bool shared() const { return block_->references > 1; }

 private:
  friend class BufferPool;
  explicit Buffer(buffer_internal::Block* block) : block_(block) {}
  void Release();

  buffer_internal::Block* block_ = nullptr;
};

class BufferPool {
 public:
  // The calling thread's.
  static BufferPool& OfThisThread();

  BufferPool() = default;
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;
  ~BufferPool() { Trim(); }

  // What a buffer for `size` bytes takes.
  static size_t CapacityFor(size_t size);

  // A buffer of at least `size` bytes, at most kMaxSize. Its capacity is added to `*charged_to`, and taken
  // off when the last reference is gone.
  static constexpr size_t kMaxSize = size_t{32} << 20;
  Buffer Allocate(size_t size, size_t* charged_to);

  // Memory that is kept for the next buffers.
  size_t unused_bytes() const { return unused_; }
  // Gives it back to the system.
  void Trim();

 private:
  friend class Buffer;
  static constexpr int kSmallestShift = 12;
  static constexpr int kClasses = 14;  // 4 KiB to 32 MiB.
  // More than this is not kept, so that one burst of large requests does not cost its memory for ever.
  static constexpr size_t kMaxUnused = size_t{64} << 20;

  void Recycle(buffer_internal::Block* block);

  std::array<buffer_internal::Block*, kClasses> free_ = {};
  size_t unused_ = 0;  // Bytes.
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_BUFFER_POOL_H_
