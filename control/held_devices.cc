#include "control/held_devices.h"

#include <algorithm>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"

namespace berth::control {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(20);
constexpr absl::Duration kLongestPause = absl::Seconds(1);

}  // namespace

HeldDevices::HeldDevices(netlink::NbdKernel* kernel,
                         absl::AnyInvocable<void(const std::string& name, const HeldDevice& device)> let_go)
    : kernel_(kernel), let_go_(std::move(let_go)), pause_(kFirstPause), thread_([this] { Run(); }) {}

void HeldDevices::Watch(const std::string& name, const HeldDevice& device) {
  {
    MutexLock lock(&mutex_);
    devices_[name] = device;
    pause_ = kFirstPause;
  }
  changed_.SignalAll();
}

void HeldDevices::Forget(const std::string& name) {
  MutexLock lock(&mutex_);
  devices_.erase(name);
}

size_t HeldDevices::size() const {
  MutexLock lock(&mutex_);
  return devices_.size();
}

void HeldDevices::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  changed_.SignalAll();
  if (thread_.joinable()) thread_.join();
}

// What cannot be looked at is not known to be gone.
bool HeldDevices::IsLetGo(const HeldDevice& device) {
  const absl::StatusOr<netlink::DeviceState> state = kernel_->Inspect(device.index);
  if (!state.ok()) return false;
  const bool another =
      !state->backend_identifier.empty() && state->backend_identifier != device.backend_identifier;
  return !state->exists || state->IsFree() || another;
}

void HeldDevices::Run() {
  mutex_.Lock();
  while (!stopping_) {
    if (devices_.empty()) {
      changed_.Wait(&mutex_);
      continue;
    }
    const std::map<std::string, HeldDevice> waiting = devices_;
    mutex_.Unlock();
    for (const auto& [name, device] : waiting) {
      if (!IsLetGo(device)) continue;
      mutex_.Lock();
      const auto found = devices_.find(name);
      const bool meant = !stopping_ && found != devices_.end() && found->second == device;
      if (meant) devices_.erase(found);
      mutex_.Unlock();
      if (meant) let_go_(name, device);
    }
    mutex_.Lock();
    if (stopping_ || devices_.empty()) continue;
    const absl::Duration pause = std::exchange(pause_, std::min(2 * pause_, kLongestPause));
    changed_.WaitUntil(&mutex_, absl::Now() + pause);
  }
  mutex_.Unlock();
}

}  // namespace berth::control
