// RemoteExport: an export of an NBD server over several connections, as one BlockChannel.
//
// More than one only where the server says that a flush on any covers the writes of all
// (NBD_FLAG_CAN_MULTI_CONN). A request goes to the connection with the fewest under way. A connection that
// breaks fails what was under way on it and is not used again; the others go on, until there is none left and
// everything fails with EIO.
//
// Thread: confined to its reactor. Lifetime: Disconnect() has been awaited before it is destroyed.
#ifndef BERTH_NBD_CLIENT_REMOTE_EXPORT_H_
#define BERTH_NBD_CLIENT_REMOTE_EXPORT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/io/blocking_pool.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "nbd/client/remote_connection.h"
#include "nbd/client/uri.h"

namespace berth::nbd {

class RemoteExport final : public BlockChannel {
 public:
  // At most `connections`, at least one. Errors as RemoteConnection::Connect() of the first. Where the server
  // lets fewer in, or says different things of the export on another, there are fewer, and shortage() says
  // why.
  static Task<absl::StatusOr<std::unique_ptr<RemoteExport>>> Connect(Reactor& reactor, BlockingPool& pool,
                                                                     const Uri& uri,
                                                                     const RemoteOptions& options,
                                                                     size_t connections);

  explicit RemoteExport(std::vector<std::unique_ptr<RemoteConnection>> clients)
      : clients_(std::move(clients)) {}

  const ExportInfo& info() const { return clients_[0]->info(); }
  // What is true of a BlockDevice over it, as the server says.
  BlockTraits traits() const;
  size_t connections() const { return clients_.size(); }
  const RemoteConnection& client(size_t index) const { return *clients_[index]; }
  // OK where there are as many connections as were wanted and allowed.
  const absl::Status& shortage() const { return shortage_; }

  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override;
  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override;
  Task<IoResult> Flush() override;
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override;
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override;
  Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override;
  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) override;

  // As RemoteConnection::Disconnect(), of all connections.
  Task<void> Disconnect();

 private:
  // One that works, with the fewest requests under way; any, where none works.
  RemoteConnection& Best();

  const std::vector<std::unique_ptr<RemoteConnection>> clients_;  // Never empty.
  absl::Status shortage_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_REMOTE_EXPORT_H_
