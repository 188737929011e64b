// ReplyWriter: what a connection answers, in the style that was negotiated (proto.md, "Simple reply message",
// "Structured reply chunk message", "Extended reply chunk message").
//
// Simple replies where only they were negotiated, and beside structured ones for a success without payload,
// which is the shortest. With extended headers everything is a chunk.
//
// Thread: its connection's. Lifetime: the queue outlives it.
#ifndef BERTH_NBD_REPLY_WRITER_H_
#define BERTH_NBD_REPLY_WRITER_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "image/block/status_context.h"
#include "nbd/buffer_pool.h"
#include "nbd/reply_queue.h"
#include "nbd/request_check.h"
#include "nbd/wire.h"
#include "nbd/zero_runs.h"

namespace berth::nbd {

class ReplyWriter {
 public:
  ReplyWriter(ReplyStyle style, ReplyQueue& queue) : style_(style), queue_(queue) {}

  // Of every command but READ and BLOCK_STATUS.
  void Success(const Request& request);
  // Of a READ: request.length bytes of `payload`, which may be null where that is 0. Zeroes in it become
  // holes as zero_runs.h says, except in simple replies and with NBD_CMD_FLAG_DF.
  void Data(const Request& request, Buffer payload);
  void Failure(const Request& request, const Refusal& refusal);

  // What the chunk of one context takes.
  size_t BlockStatusBytes(size_t extents) const;
  // One context's chunk of a BLOCK_STATUS, written into `buffer` of BlockStatusBytes(). `last` for the
  // reply's last chunk.
  void BlockStatus(const Request& request, uint32_t context_id, absl::Span<const StatusExtent> extents,
                   bool last, Buffer buffer);

 private:
  ChunkedReply ReplyTo(const Request& request) const { return {style_, request.cookie, request.offset}; }
  void Simple(const Request& request, Error error);
  void Content(const Request& request, Buffer payload);
  void ContentChunk(const ChunkedReply& reply, uint64_t offset, const ContentRun& run, bool last,
                    const uint8_t* data, const Buffer& payload);

  const ReplyStyle style_;
  ReplyQueue& queue_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_REPLY_WRITER_H_
