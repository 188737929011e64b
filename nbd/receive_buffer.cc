#include "nbd/receive_buffer.h"

#include <cassert>
#include <cstring>

namespace berth::nbd {
namespace {

// Less room than this behind what was received makes it worth moving that to the front.
constexpr size_t kLeastSpace = ReceiveBuffer::kIdleSize / 2;

}  // namespace

ReceiveBuffer::ReceiveBuffer(BufferPool& pool, size_t* charged_to)
    : pool_(pool), charged_to_(charged_to), buffer_(pool.Allocate(kIdleSize, charged_to)) {}

bool ReceiveBuffer::MustMove() const {
  if (grow_ && !busy()) return true;
  return buffer_.shared() && buffer_.capacity() - end_ < kLeastSpace;
}

size_t ReceiveBuffer::NeededForSpace() const {
  return MustMove() ? (grow_ || busy() ? kBusySize : kIdleSize) : 0;
}

absl::Span<uint8_t> ReceiveBuffer::PrepareSpace() {
  if (MustMove()) {
    Move(NeededForSpace());
  } else if (!buffer_.shared() && (begin_ == end_ || buffer_.capacity() - end_ < kLeastSpace)) {
    memmove(buffer_.data(), buffer_.data() + begin_, size());
    end_ -= begin_;
    begin_ = 0;
  }
  assert(end_ < buffer_.capacity());
  return {buffer_.data() + end_, buffer_.capacity() - end_};
}

void ReceiveBuffer::Commit(size_t count) {
  end_ += count;
  grow_ = end_ == buffer_.capacity();
}

void ReceiveBuffer::ShrinkToIdle() {
  if (busy()) Move(kIdleSize);
  grow_ = false;
}

void ReceiveBuffer::Move(size_t capacity) {
  assert(size() < capacity);
  Buffer target = pool_.Allocate(capacity, charged_to_);
  memcpy(target.data(), buffer_.data() + begin_, size());
  end_ -= begin_;
  begin_ = 0;
  buffer_ = std::move(target);
}

}  // namespace berth::nbd
