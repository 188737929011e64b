// NetworkClients: what happens when NBD clients come and go: the registry counts them, and watchers hear of
// it.
#ifndef BERTH_CONTROL_NETWORK_CLIENTS_H_
#define BERTH_CONTROL_NETWORK_CLIENTS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "control/event_hub.h"
#include "control/export_registry.h"
#include "nbd/server.h"

namespace berth::control {

// Thread-safe. Lifetime: shares what it uses, as a connection that would not end may outlive the server.
class NetworkClients final : public nbd::ClientObserver {
 public:
  NetworkClients(std::shared_ptr<ExportRegistry> exports, std::shared_ptr<EventHub> events);

  absl::Status Connecting(const nbd::Client& client) override;
  void Disconnected(const nbd::Client& client, const absl::Status& reason) override;
  void Rejected(absl::string_view peer, const absl::Status& reason) override;

 private:
  void Publish(v1::EventType type, const nbd::Client& client, absl::string_view message);

  const std::shared_ptr<ExportRegistry> exports_;
  const std::shared_ptr<EventHub> events_;
  // In seconds of the Unix epoch: clients choose how often they are rejected, not how often it is logged.
  std::atomic<int64_t> logged_ = 0;
  std::atomic<uint64_t> unlogged_ = 0;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_NETWORK_CLIENTS_H_
