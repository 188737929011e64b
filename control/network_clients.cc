#include "control/network_clients.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "control/log.h"

namespace berth::control {

NetworkClients::NetworkClients(std::shared_ptr<ExportRegistry> exports, std::shared_ptr<EventHub> events)
    : exports_(std::move(exports)), events_(std::move(events)) {}

absl::Status NetworkClients::Connecting(const nbd::Client& client) {
  if (absl::Status status = exports_->AdmitClient(client.export_name); !status.ok()) return status;
  Publish(v1::EVENT_TYPE_CLIENT_CONNECTED, client, client.peer);
  return absl::OkStatus();
}

void NetworkClients::Disconnected(const nbd::Client& client, const absl::Status& reason) {
  exports_->ClientGone(client.export_name);
  Publish(v1::EVENT_TYPE_CLIENT_DISCONNECTED, client,
          reason.ok() ? client.peer : absl::StrCat(client.peer, ": ", reason.message()));
}

void NetworkClients::Rejected(absl::string_view peer, const absl::Status& reason) {
  const int64_t now = absl::ToUnixSeconds(absl::Now());
  int64_t logged = logged_.load(std::memory_order_relaxed);
  if (now == logged || !logged_.compare_exchange_strong(logged, now)) {
    unlogged_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  Log(LogLevel::kInfo, "NBD client rejected",
      {{"peer", std::string(peer.data(), peer.size())},
       {"reason", std::string(reason.message())},
       {"unlogged_before", absl::StrCat(unlogged_.exchange(0))}});
}

void NetworkClients::Publish(v1::EventType type, const nbd::Client& client, absl::string_view message) {
  v1::Event event;
  event.set_type(type);
  event.set_export_(client.export_name);
  event.set_message(std::string(message.data(), message.size()));
  events_->Publish(std::move(event));
}

}  // namespace berth::control
