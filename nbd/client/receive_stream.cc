#include "nbd/client/receive_stream.h"

#include <sys/uio.h>

#include <algorithm>
#include <cassert>
#include <cstring>

namespace berth::nbd {

Task<int> ReceiveStream::Need(size_t count) {
  assert(count <= kCapacity);
  if (begin_ + count > kCapacity || begin_ == end_) {
    memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  while (end_ - begin_ < count) {
    const iovec vector = {buffer_.data() + end_, kCapacity - end_};
    const int received = co_await transport_.Receive({&vector, 1});
    if (received <= 0) co_return received;
    end_ += static_cast<size_t>(received);
  }
  co_return 1;
}

Task<int> ReceiveStream::ReadInto(absl::Span<uint8_t> out) {
  const size_t there = std::min(out.size(), end_ - begin_);
  if (there > 0) memcpy(out.data(), buffer_.data() + begin_, there);
  begin_ += there;
  out.remove_prefix(there);
  while (!out.empty()) {
    begin_ = end_ = 0;  // All was taken.
    const iovec vectors[] = {{out.data(), out.size()}, {buffer_.data(), kCapacity}};
    const int received = co_await transport_.Receive(vectors);
    if (received <= 0) co_return received;
    const size_t direct = std::min(out.size(), static_cast<size_t>(received));
    out.remove_prefix(direct);
    end_ = static_cast<size_t>(received) - direct;
  }
  co_return 1;
}

}  // namespace berth::nbd
