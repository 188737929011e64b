#include "nbd/buffer_pool.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <new>

#include "image/io/address_sanitizer.h"

namespace berth::nbd {
namespace {

using buffer_internal::Block;

constexpr std::align_val_t kPage{4096};

void Destroy(Block* block) {
  ::operator delete(block->data, kPage);
  delete block;
}

}  // namespace

BufferPool& BufferPool::OfThisThread() {
  static thread_local BufferPool pool;
  return pool;
}

size_t BufferPool::CapacityFor(size_t size) {
  return std::max(std::bit_ceil(size), size_t{1} << kSmallestShift);
}

Buffer BufferPool::Allocate(size_t size, size_t* charged_to) {
  assert(size <= kMaxSize);
  const size_t capacity = CapacityFor(size);
  const uint32_t size_class = static_cast<uint32_t>(std::countr_zero(capacity)) - kSmallestShift;
  Block* block = free_[size_class];
  if (block != nullptr) {
    free_[size_class] = block->next;
    unused_ -= capacity;
  } else {
    block = new Block{
        this,   static_cast<uint8_t*>(::operator new(capacity, kPage)), capacity, 0, size_class, nullptr,
        nullptr};
  }
  block->references = 1;
  block->charged_to = charged_to;
  *charged_to += capacity;
  return Buffer(block);
}

void Buffer::Release() { block_->pool->Recycle(block_); }

void BufferPool::Recycle(Block* block) {
  *block->charged_to -= block->capacity;
  if (kAddressSanitizer || unused_ + block->capacity > kMaxUnused) {
    Destroy(block);
    return;
  }
  block->next = free_[block->size_class];
  free_[block->size_class] = block;
  unused_ += block->capacity;
}

void BufferPool::Trim() {
  for (Block*& head : free_) {
    while (head != nullptr) Destroy(std::exchange(head, head->next));
  }
  unused_ = 0;
}

}  // namespace berth::nbd
