// ReceiveBuffer: what a connection has received and not yet looked at.
//
// Small while the connection is idle. A receive that fills it makes it large, so that one receive holds many
// requests; ShrinkToIdle() makes it small again.
//
// Consumed bytes may be pinned: Pin() returns a reference under which they stay where they are, for a write
// that is served from the buffer. The ReceiveBuffer then goes on in other memory where it must.
//
// Thread: its connection's.
#ifndef BERTH_NBD_RECEIVE_BUFFER_H_
#define BERTH_NBD_RECEIVE_BUFFER_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "nbd/buffer_pool.h"

namespace berth::nbd {

class ReceiveBuffer {
 public:
  static constexpr size_t kIdleSize = size_t{16} << 10;
  static constexpr size_t kBusySize = size_t{256} << 10;

  // Memory is counted in `*charged_to`.
  ReceiveBuffer(BufferPool& pool, size_t* charged_to);

  // Received and not consumed.
  absl::Span<uint8_t> bytes() const { return {buffer_.data() + begin_, end_ - begin_}; }
  size_t size() const { return end_ - begin_; }
  void Consume(size_t count) { begin_ += count; }
  // Keeps everything received so far in its place.
  Buffer Pin() const { return buffer_; }

  // What PrepareSpace() would add to the memory that is counted.
  size_t NeededForSpace() const;
  // Where the next receive goes: never empty, as long as size() is under kBusySize. Moves bytes() where they
  // leave too little room.
  absl::Span<uint8_t> PrepareSpace();
  // `count` bytes were received into the space.
  void Commit(size_t count);

  bool busy() const { return buffer_.capacity() > kIdleSize; }
  // Gives the large memory back. Only where size() fits the small one and nothing receives into the space.
  void ShrinkToIdle();

 private:
  // Goes on in new memory of `capacity` bytes.
  void Move(size_t capacity);
  bool MustMove() const;

  BufferPool& pool_;
  size_t* const charged_to_;
  Buffer buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  bool grow_ = false;  // The last receive filled the space.
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_RECEIVE_BUFFER_H_
