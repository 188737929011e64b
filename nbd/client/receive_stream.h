// ReceiveStream: a transport's incoming bytes, a message at a time.
//
// Many small messages come with one receive. A large payload goes straight to where it belongs, together with
// the beginning of what follows it.
//
// Thread: its transport's. One call at a time.
#ifndef BERTH_NBD_CLIENT_RECEIVE_STREAM_H_
#define BERTH_NBD_CLIENT_RECEIVE_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "image/io/task.h"
#include "nbd/transport.h"

namespace berth::nbd {

class ReceiveStream {
 public:
  static constexpr size_t kCapacity = size_t{64} << 10;

  explicit ReceiveStream(Transport& transport) : transport_(transport), buffer_(kCapacity) {}

  // Received and not taken.
  absl::Span<const uint8_t> bytes() const {
    return absl::MakeConstSpan(buffer_).subspan(begin_, end_ - begin_);
  }
  void Take(size_t count) { begin_ += count; }

  // Receives until there are `count` bytes(), at most kCapacity. 0 where the stream ended before, -errno
  // where it broke, else a positive number.
  Task<int> Need(size_t count);
  // Takes exactly as many bytes as `out` holds. Results as Need().
  Task<int> ReadInto(absl::Span<uint8_t> out);

 private:
  Transport& transport_;
  std::vector<uint8_t> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_RECEIVE_STREAM_H_
