// RemoteConnection: one connection to an export of an NBD server, in the transmission phase, as a
// BlockChannel.
//
//   absl::StatusOr<std::unique_ptr<RemoteConnection>> client = co_await RemoteConnection::Connect(reactor,
//   pool, uri, options); IoResult result = co_await (*client)->Read(0, buffer); co_await
//   (*client)->Disconnect();
//
// Any number of operations may be under way; they are on the wire at once and are matched by cookie. What is
// larger than the server takes at once is cut into pieces. A server without NBD_CMD_WRITE_ZEROES gets zeroes
// written, without NBD_CMD_FLAG_FUA a flush after the write; what is only advice (discard, prefetch) it is
// spared.
//
// Beside BlockChannel's contract: ranges are multiples of the server's minimum block size, else EINVAL; where
// that is 1, as with most servers, any range is served. EPERM for a write to a read-only export.
//
// A server that breaks the protocol, closes the connection, or leaves a request unanswered for too long ends
// the connection: every operation, then and later, fails with EIO, and status() says why. After NBD_ESHUTDOWN
// requests under way still get their answers, and others fail with ESHUTDOWN.
//
// Thread: confined to its reactor. Lifetime: Disconnect() has been awaited before it is destroyed.
#ifndef BERTH_NBD_CLIENT_REMOTE_CONNECTION_H_
#define BERTH_NBD_CLIENT_REMOTE_CONNECTION_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/block/extent.h"
#include "image/io/blocking_pool.h"
#include "image/io/gate.h"
#include "image/io/io_result.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "nbd/client/dial.h"
#include "nbd/client/export_info.h"
#include "nbd/client/pending_request.h"
#include "nbd/client/reply_reader.h"
#include "nbd/client/request_sender.h"
#include "nbd/client/uri.h"
#include "nbd/transport.h"

namespace berth::nbd {

struct RemoteOptions {
  DialOptions dial = {};
  // A request that is not answered for so long ends the connection.
  absl::Duration request_timeout = absl::Seconds(60);
  // How long Disconnect() waits for the server to close the connection.
  absl::Duration disconnect_timeout = absl::Seconds(5);
};

// What a server said about a request that it did not serve.
struct RequestFailure {
  Command command = Command::kRead;
  uint64_t offset = 0;  // The request's.
  uint64_t length = 0;
  Error error = Error::kNone;
  std::string message;                   // Its words, its bytes: to be escaped. Often empty.
  std::optional<uint64_t> error_offset;  // Where it failed, where the server said so.
};

class RemoteConnection final : public BlockChannel {
 public:
  // Errors as Dial().
  static Task<absl::StatusOr<std::unique_ptr<RemoteConnection>>> Connect(Reactor& reactor, BlockingPool& pool,
                                                                         const Uri& uri,
                                                                         const RemoteOptions& options);

  // On the reactor's thread; `connection` belongs to it.
  RemoteConnection(Reactor& reactor, Connection connection, const RemoteOptions& options);
  ~RemoteConnection() override;

  const ExportInfo& info() const { return info_; }
  ReplyStyle reply_style() const { return style_; }

  // BlockChannel. Extents() goes by the context base:allocation, where it was selected.
  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override;
  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override;
  Task<IoResult> Flush() override;
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override;
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override;
  Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override;
  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) override;

  // NBD_CMD_BLOCK_STATUS. What the server says of the contexts with these IDs, as info() has them, or of all
  // where `context_ids` is empty; with `one`, of their first extents alone. The length is advice: each
  // context has one extent at least, and they may end before the range does, or after. ENOTSUP where no
  // context was selected, EINVAL for an ID that was not.
  Task<IoResult> BlockStatus(uint64_t offset, uint64_t length, bool one,
                             absl::Span<const uint32_t> context_ids, std::vector<ContextStatus>* out);

  // Operations under way are finished, and later ones fail with ESHUTDOWN; then the server is told, and the
  // connection is closed. Awaited once.
  Task<void> Disconnect();

  // OK as long as requests can be answered; then why they cannot. What Disconnect() does is no error.
  const absl::Status& status() const { return status_; }
  // The last request that the server refused or failed.
  const RequestFailure& last_failure() const { return last_failure_; }
  // Sent or to be sent, and not answered.
  size_t requests_in_flight() const { return pending_.size(); }

 private:
  class Exchange;

  Task<void> ReceiveReplies(Gate::Holder);
  Task<IoResult> Perform(PendingRequest& request);
  // For commands without a payload, in pieces that the server takes.
  Task<IoResult> PerformEffect(Command command, uint16_t flags, uint64_t offset, uint64_t length);
  Task<IoResult> WriteChecked(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags);
  Task<IoResult> FlushChecked();
  Task<IoResult> WriteZeroes(uint64_t offset, uint64_t length, ZeroFlags flags);

  IoResult CheckRange(uint64_t offset, uint64_t length) const;
  IoResult CheckWrite(uint64_t offset, uint64_t length) const;
  uint64_t EffectLimit() const;
  bool Start(PendingRequest& request);
  void Complete(PendingRequest& request);
  // No reply is waited for any more. The operations hear of it when nothing uses their buffers.
  void Break(absl::Status reason);
  void FailAll();
  void Watch();
  void SaidGoodbye();

  Reactor& reactor_;
  const std::unique_ptr<Transport> transport_;
  const ExportInfo info_;
  const ReplyStyle style_;
  const RemoteOptions options_;
  const uint64_t alignment_;  // The minimum block size.
  const uint64_t max_payload_;
  std::optional<uint32_t> allocation_id_;  // Of base:allocation.

  absl::Status status_;
  RequestFailure last_failure_;
  bool disconnecting_ = false;    // By Disconnect().
  bool server_stopping_ = false;  // It said NBD_ESHUTDOWN.
  bool said_goodbye_ = false;
  bool effects_limited_ = false;  // The server takes no more than a payload's length at once.

  uint64_t next_cookie_ = 1;
  std::map<uint64_t, PendingRequest*> pending_;  // By cookie, so the oldest comes first.
  Reactor::Timer watch_;
  bool watching_ = false;

  Gate operations_;
  Gate sending_;
  Gate receiving_;
  RequestSender sender_;
  ReplyReader reader_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_REMOTE_CONNECTION_H_
