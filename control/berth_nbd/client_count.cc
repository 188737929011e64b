#include "control/berth_nbd/client_count.h"

namespace berth::control {

void ClientCount::Opened() {
  MutexLock lock(&mutex_);
  ++connections_;
}

size_t ClientCount::connections() const {
  MutexLock lock(&mutex_);
  return connections_;
}

bool ClientCount::last_has_left() const {
  MutexLock lock(&mutex_);
  return last_has_left_;
}

absl::Status ClientCount::Connecting(const nbd::Client& client) {
  on_change_(Change::kCame, client.peer, absl::OkStatus());
  return absl::OkStatus();
}

void ClientCount::Disconnected(const nbd::Client& client, const absl::Status& reason) {
  {
    MutexLock lock(&mutex_);
    if (--connections_ == 0) last_has_left_ = true;
  }
  on_change_(Change::kLeft, client.peer, reason);
}

void ClientCount::Rejected(absl::string_view peer, const absl::Status& reason) {
  {
    MutexLock lock(&mutex_);
    --connections_;
  }
  on_change_(Change::kRejected, peer, reason);
}

}  // namespace berth::control
