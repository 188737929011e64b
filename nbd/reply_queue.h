// ReplyQueue: replies that are ready, and their way into the socket.
//
// Replies are collected and sent together, headers and payloads in one call. A send first tries without
// waiting, which is all there is to it as long as the client reads; what the socket does not take goes on
// through the ring while further replies are collected.
//
// Thread: its connection's. Lifetime: outlives its sends, each of which holds the gate; so do the transport
// and the gate.
#ifndef BERTH_NBD_REPLY_QUEUE_H_
#define BERTH_NBD_REPLY_QUEUE_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/types/span.h"
#include "image/io/gate.h"
#include "image/io/task.h"
#include "nbd/buffer_pool.h"
#include "nbd/transport.h"

namespace berth::nbd {

class ReplyQueue {
 public:
  // `on_sent` hears how many replies have left the queue, sent or, on a broken connection, dropped.
  ReplyQueue(Transport& transport, Gate& gate, absl::AnyInvocable<void(size_t)> on_sent)
      : transport_(transport), gate_(gate), on_sent_(std::move(on_sent)) {}

  // Adds the last or only part of a reply, with a header of `header_size` bytes, to be written where the
  // result points before the next call, and `payload_size` bytes of `payload`, which the queue holds until
  // they are sent.
  uint8_t* Add(size_t header_size) { return Add(header_size, Buffer(), 0); }
  uint8_t* Add(size_t header_size, Buffer payload, size_t payload_size);
  // Adds a part of a reply of which more will follow. The payload, `payload_size` bytes at `data`, lies in
  // `owner`; other parts may share it. What is added in between may be sent in between.
  uint8_t* AddPart(size_t header_size, const uint8_t* data, size_t payload_size, Buffer owner);
  // The last or only part, with a payload as AddPart().
  uint8_t* AddLast(size_t header_size, const uint8_t* data, size_t payload_size, Buffer owner);

  // Sends what was added.
  void Flush();

  // Bytes added since the last Flush().
  size_t collected_bytes() const { return collected_bytes_; }
  // A send has failed: the connection is of no more use, and replies are dropped. 0 or an errno.
  int error() const { return error_; }
  // Gives memory back that past bursts took.
  void ShrinkToIdle();

 private:
  // Headers of neighbours without payload are one piece, as they lie side by side.
  struct Piece {
    size_t header_size;
    size_t payload_size;
    const uint8_t* data;
    Buffer owner;  // Of the payload.
  };
  struct Batch {
    std::vector<uint8_t> headers;
    std::vector<Piece> pieces;
    size_t replies = 0;
    // What has been sent: whole pieces, headers, and bytes of the current piece.
    size_t next_piece = 0;
    size_t header_offset = 0;
    size_t piece_offset = 0;

    size_t FillVectors(absl::Span<iovec> vectors) const;
    void Advance(size_t bytes);
    bool done() const { return next_piece == pieces.size(); }
    void Clear();
  };

  bool SendWithoutWaiting();
  Task<void> SendRest(Gate::Holder holder);
  void Fail(int error);
  void FinishBatch();

  Transport& transport_;
  Gate& gate_;
  absl::AnyInvocable<void(size_t)> on_sent_;
  Batch collected_;
  size_t collected_bytes_ = 0;
  Batch leaving_;
  bool waiting_ = false;  // SendRest() is under way and owns leaving_.
  int error_ = 0;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_REPLY_QUEUE_H_
