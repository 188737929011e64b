#include "nbd/client/remote_export.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace berth::nbd {

Task<absl::StatusOr<std::unique_ptr<RemoteExport>>> RemoteExport::Connect(Reactor& reactor,
                                                                          BlockingPool& pool, const Uri& uri,
                                                                          const RemoteOptions& options,
                                                                          size_t connections) {
  std::vector<std::unique_ptr<RemoteConnection>> clients;
  absl::Status shortage;
  do {
    absl::StatusOr<std::unique_ptr<RemoteConnection>> client =
        co_await RemoteConnection::Connect(reactor, pool, uri, options);
    if (!client.ok()) {
      if (clients.empty()) co_return client.status();
      shortage = client.status();
      break;
    }
    clients.push_back(*std::move(client));
    const ExportInfo& first = clients.front()->info();
    const ExportInfo& last = clients.back()->info();
    if (first.size != last.size || first.flags != last.flags) {
      shortage =
          absl::FailedPreconditionError("the server says different things of the export on each connection");
      co_await clients.back()->Disconnect();
      clients.pop_back();
      break;
    }
  } while (clients.size() < connections && clients.front()->info().Has(kFlagCanMultiConn));
  auto remote = std::make_unique<RemoteExport>(std::move(clients));
  remote->shortage_ = std::move(shortage);
  co_return remote;
}

BlockTraits RemoteExport::traits() const {
  BlockTraits traits;
  traits.read_only = info().Has(kFlagReadOnly);
  traits.rotational = info().Has(kFlagRotational);
  traits.can_discard = info().Has(kFlagSendTrim);
  traits.fast_zero = info().Has(kFlagSendFastZero);
  // With one connection there is nothing to be covered but what went through it.
  traits.flush_covers_all_channels = info().Has(kFlagCanMultiConn);
  if (info().block_sizes.has_value()) traits.preferred_alignment = info().block_sizes->preferred;
  return traits;
}

RemoteConnection& RemoteExport::Best() {
  const auto load = [](const std::unique_ptr<RemoteConnection>& client) {
    return std::tuple(!client->status().ok(), client->requests_in_flight());
  };
  return **std::min_element(clients_.begin(), clients_.end(),
                            [&load](const auto& a, const auto& b) { return load(a) < load(b); });
}

Task<IoResult> RemoteExport::Read(uint64_t offset, absl::Span<uint8_t> out) {
  return Best().Read(offset, out);
}

Task<IoResult> RemoteExport::Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) {
  return Best().Write(offset, data, flags);
}

Task<IoResult> RemoteExport::Flush() { return Best().Flush(); }

Task<IoResult> RemoteExport::Zero(uint64_t offset, uint64_t length, ZeroFlags flags) {
  return Best().Zero(offset, length, flags);
}

Task<IoResult> RemoteExport::Discard(uint64_t offset, uint64_t length) {
  return Best().Discard(offset, length);
}

Task<IoResult> RemoteExport::Prefetch(uint64_t offset, uint64_t length) {
  return Best().Prefetch(offset, length);
}

Task<IoResult> RemoteExport::Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) {
  return Best().Extents(offset, length, out);
}

Task<void> RemoteExport::Disconnect() {
  for (const std::unique_ptr<RemoteConnection>& client : clients_) co_await client->Disconnect();
}

}  // namespace berth::nbd
