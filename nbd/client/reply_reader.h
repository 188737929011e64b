// ReplyReader: a server's replies (proto.md, "Simple reply message", "Structured reply chunk message",
// "Extended reply chunk message"), put together and checked.
//
// Nothing of a server is believed: a chunk is written only where its request has room for it, every byte of a
// read is answered once, and what a reply makes this end keep is bounded.
//
// Thread: its transport's.
#ifndef BERTH_NBD_CLIENT_REPLY_READER_H_
#define BERTH_NBD_CLIENT_REPLY_READER_H_

#include <cstdint>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/io/task.h"
#include "nbd/client/pending_request.h"
#include "nbd/client/receive_stream.h"
#include "nbd/transport.h"
#include "nbd/wire.h"

namespace berth::nbd {

class ReplyReader {
 public:
  // `find` gives the request of a cookie that still waits for an answer, or null.
  ReplyReader(Transport& transport, ReplyStyle style, absl::AnyInvocable<PendingRequest*(uint64_t)> find);
  ReplyReader(const ReplyReader&) = delete;
  ReplyReader& operator=(const ReplyReader&) = delete;

  // Receives until a request is completely answered, well or by an error, and returns it. An error means that
  // the connection is of no more use: UNAVAILABLE where it ended, INTERNAL where the server broke the
  // protocol. Requests of which a part was received stay as they are.
  Task<absl::StatusOr<PendingRequest*>> Next();

 private:
  Task<absl::Status> ReceiveSimple();
  Task<absl::Status> ReceiveChunk();
  Task<absl::Status> ReceivePayload(PendingRequest& request, const ChunkHeader& header);
  Task<absl::Status> ReceiveData(PendingRequest& request, uint64_t length);
  Task<absl::Status> ReceiveHole(PendingRequest& request);
  Task<absl::Status> ReceiveBlockStatus(PendingRequest& request, uint64_t length);
  Task<absl::Status> ReceiveError(PendingRequest& request, const ChunkHeader& header);
  absl::Status AddDescriptors(const PendingRequest& request, absl::Span<const uint8_t> descriptors,
                              ContextStatus* status) const;

  ReceiveStream stream_;
  const ReplyStyle style_;
  absl::AnyInvocable<PendingRequest*(uint64_t)> find_;
  PendingRequest* finished_ = nullptr;
  std::vector<uint8_t> scratch_;  // A chunk that is looked at as a whole.
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_REPLY_READER_H_
