// RawClient: the client's end of a connection in the transmission phase, for tests that choose every byte.
//
// Blocking, with a deadline on every wait, after which an expectation fails. One thread.
#ifndef BERTH_NBD_RAW_CLIENT_H_
#define BERTH_NBD_RAW_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "image/io/unique_fd.h"
#include "nbd/wire.h"

namespace berth::nbd {

class RawClient {
 public:
  explicit RawClient(UniqueFd socket);

  // A connected pair of stream sockets; each takes `buffer_bytes` without being read.
  static void MakePair(UniqueFd* client, UniqueFd* server, int buffer_bytes = 4 << 20);

  // What requests and chunks look like from now on; kStructured at first, whose requests kSimple has too.
  void SetStyle(ReplyStyle style) { style_ = style; }

  int fd() const { return socket_.get(); }
  void Close() { socket_.Reset(); }

  // False where the connection broke or took nothing before the deadline.
  bool Send(absl::Span<const uint8_t> bytes);
  bool Send(const Request& request, absl::Span<const uint8_t> payload = {});
  // What the socket takes without waiting; its size.
  size_t SendWithoutWaiting(absl::Span<const uint8_t> bytes);

  // Exactly `size` bytes; fewer, and a failed expectation, where the stream ends.
  std::vector<uint8_t> Receive(size_t size);
  // True where the stream ends here.
  bool AtEnd();
  // True where there is nothing to receive now.
  bool Quiet();

  SimpleReply ReceiveSimple();
  struct Chunk {
    ChunkHeader header;
    std::vector<uint8_t> payload;

    bool done() const { return (header.flags & kReplyFlagDone) != 0; }
    // Of NBD_REPLY_TYPE_ERROR and NBD_REPLY_TYPE_ERROR_OFFSET.
    Error error() const { return static_cast<Error>(Load32(payload.data())); }
    std::string message() const;
  };
  Chunk ReceiveChunk();

 private:
  UniqueFd socket_;
  ReplyStyle style_ = ReplyStyle::kStructured;
};

// `size` bytes that differ from each other and with `seed`.
std::vector<uint8_t> Pattern(size_t size, uint8_t seed);

}  // namespace berth::nbd

#endif  // BERTH_NBD_RAW_CLIENT_H_
