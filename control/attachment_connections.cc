// The connections of an attachment: how they begin, are offered to the kernel until it has them all, are
// replaced, and end.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "control/attachment.h"
#include "control/log.h"
#include "control/status_details.h"

namespace berth::control {
namespace {

// Between two offers of connections to a kernel that has not noticed yet that the old ones are dead.
constexpr absl::Duration kFirstOfferPause = absl::Milliseconds(2);
constexpr absl::Duration kLongestOfferPause = absl::Milliseconds(100);
// Until the kernel has seen that the process before is dead.
constexpr absl::Duration kReconnectTime = absl::Seconds(10);
// What a repair may take before it makes room for the next device.
constexpr absl::Duration kRepairTime = absl::Seconds(2);

}  // namespace

absl::Duration RequestDeadline(absl::Duration request_timeout, absl::Duration device_timeout) {
  return std::min(request_timeout, device_timeout * 2 / 3);
}

void Attachment::StartSessions() {
  uint64_t epoch;
  {
    MutexLock lock(&mutex_);
    epoch = epoch_ = ++last_epoch_;
    connections_ = 0;
    all_lost_ = false;
  }
  nbd::SessionOptions options = environment_.options.session;
  options.request_deadline =
      RequestDeadline(environment_.options.request_timeout, absl::Seconds(record_.timeout_seconds()));
  sessions_ = std::make_unique<DeviceSessions>(*environment_.reactors, served_, options,
                                               [weak = weak_from_this(), epoch](size_t live) {
                                                 if (auto attachment = weak.lock()) {
                                                   attachment->ConnectionLost(epoch, live);
                                                 }
                                               });
}

void Attachment::ConnectionLost(uint64_t epoch, size_t live) {
  bool all_lost = false;
  {
    MutexLock lock(&mutex_);
    if (epoch_ != epoch) return;
    connections_ = static_cast<uint32_t>(live);
    if (shown_.state() != v1::ATTACHMENT_STATE_ATTACHED) return;
    if (live == 0) {
      all_lost = all_lost_ = true;
      shown_.set_state(v1::ATTACHMENT_STATE_FAILED);
      shown_.set_error(absl::StrCat("the kernel dropped all connections of ", shown_.device(),
                                    "; they are replaced while the device waits for them"));
    }
  }
  if (all_lost) Publish(v1::EVENT_TYPE_ATTACHMENT_FAILED);
  if (environment_.connection_lost) environment_.connection_lost(name());
}

// RECONFIGURE returns 0 whatever becomes of the connections; which of them the kernel keeps is seen at their
// other ends.
absl::StatusOr<size_t> Attachment::OfferOnce(size_t count) {
  if (absl::Status status = sessions_->Add(count); !status.ok()) return status;
  netlink::ReconfigureRequest request;
  request.index = record_.index();
  request.backend_identifier = record_.backend_identifier();
  request.sockets = sessions_->kernel_ends();
  const absl::Status status = environment_.kernel->Reconfigure(request);
  const size_t taken = sessions_->CloseKernelEnds();
  {
    MutexLock lock(&mutex_);
    connections_ = static_cast<uint32_t>(sessions_->live());
  }
  if (!status.ok()) return status;
  return taken;
}

// The kernel replaces only connections whose death it has seen, which may take it a moment each.
absl::Status Attachment::OfferConnections(size_t spare, absl::Time deadline) {
  absl::Duration pause = kFirstOfferPause;
  while (true) {
    const size_t wanted = record_.connections();
    const size_t live = sessions_->live();
    const size_t offered = (live < wanted ? wanted - live : 0) + spare;
    if (offered == 0) return absl::OkStatus();
    // The kernel sends again what a lost connection had not answered. What that one is still writing must not
    // come after its own repetition.
    if (!sessions_->WaitUntilSettled(deadline)) {
      return absl::DeadlineExceededError(
          absl::StrCat("requests of a lost connection of /dev/nbd", record_.index(),
                       " are still in the image: look at the storage below it"));
    }
    absl::StatusOr<size_t> taken = OfferOnce(offered);
    if (!taken.ok()) return taken.status();
    if (sessions_->live() >= wanted && (spare == 0 || *taken < offered)) return absl::OkStatus();
    if (absl::Now() >= deadline) {
      return absl::UnavailableError(absl::StrCat("the kernel has taken ", sessions_->live(), " of ", wanted,
                                                 " connections of /dev/nbd", record_.index(),
                                                 " and does not let the others go"));
    }
    absl::SleepFor(pause);
    pause = std::min(2 * pause, kLongestOfferPause);
  }
}

absl::Status Attachment::Reconnect(uint32_t index) {
  record_.set_index(index);
  if (absl::Status status = Persist(state::v1::ATTACHMENT_PHASE_CONNECTED); !status.ok()) return status;
  StartSessions();
  const absl::Status offered =
      OfferConnections(0, absl::Now() + std::min(environment_.options.operation_timeout, kReconnectTime));
  // One connection is enough to go on; the others are looked after later.
  if (sessions_->live() == 0) {
    return offered.ok() ? absl::UnavailableError("the kernel dropped all connections of the device")
                        : offered;
  }
  if (!offered.ok()) {
    Log(LogLevel::kWarning, "connections missing",
        {{"attachment", name()}, {"error", std::string(offered.message())}});
  }
  if (absl::Status status = ResizeDevice(served_->device->size()); !status.ok()) return status;
  failure_.clear();
  Show(v1::ATTACHMENT_STATE_ATTACHED);
  Publish(v1::EVENT_TYPE_ATTACHED);
  return absl::OkStatus();
}

absl::Status Attachment::ReplaceConnections(bool probe) {
  if (sessions_ == nullptr || served_ == nullptr || detaching()) return absl::OkStatus();
  bool all_lost;
  {
    MutexLock lock(&mutex_);
    all_lost = all_lost_;
    if (epoch_ == 0 || (!all_lost && shown_.state() != v1::ATTACHMENT_STATE_ATTACHED))
      return absl::OkStatus();
  }
  const size_t before = sessions_->live();
  if (before >= record_.connections() && !probe && !all_lost) return absl::OkStatus();
  absl::StatusOr<netlink::DeviceState> device = environment_.kernel->Inspect(record_.index());
  if (!device.ok()) return device.status();
  if (device->backend_identifier != record_.backend_identifier()) {
    // Somebody has disconnected it. That all is lost was said already.
    if (all_lost) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat("/dev/nbd", record_.index(), " is not this attachment's any more"));
  }
  const absl::Status status = OfferConnections(probe ? 1 : 0, absl::Now() + kRepairTime);
  if (sessions_->live() > before) {
    Log(LogLevel::kWarning, "connections replaced",
        {{"attachment", name()}, {"connections", absl::StrCat(sessions_->live() - before)}});
  }
  {
    MutexLock lock(&mutex_);
    if (!all_lost_ || sessions_->live() == 0) return status;
    all_lost_ = false;
    shown_.set_state(v1::ATTACHMENT_STATE_ATTACHED);
    shown_.clear_error();
  }
  Publish(v1::EVENT_TYPE_ATTACHED);
  return status;
}

bool Attachment::WaitsForConnections() const {
  if (!readable_ || gone_ || record_.phase() != state::v1::ATTACHMENT_PHASE_CONNECTED) return false;
  if (Describe().state() != v1::ATTACHMENT_STATE_FAILED) return false;
  // What is stuck in the image keeps its sessions, and they its place.
  if (sessions_ != nullptr && sessions_->running() > 0) return false;
  // A device that somebody has disconnected is not connected again behind his back.
  absl::StatusOr<std::optional<netlink::DeviceState>> device = FindDevice();
  return device.ok() && device->has_value() && (*device)->pid.has_value();
}

absl::Status Attachment::EndSessions() {
  return EndSessionsBy(absl::Now() + environment_.options.operation_timeout);
}

absl::Status Attachment::EndSessionsBy(absl::Time deadline) {
  {
    MutexLock lock(&mutex_);
    epoch_ = 0;
  }
  if (sessions_ == nullptr) return absl::OkStatus();
  sessions_->CloseKernelEnds();
  sessions_->Stop();
  if (!sessions_->WaitUntilEnded(deadline)) {
    return absl::DeadlineExceededError(
        absl::StrCat(sessions_->running(), " connections of attachment ", Quoted(name()),
                     " did not end in time: requests on the image are stuck; look at the storage below it"));
  }
  sessions_.reset();
  served_.reset();
  return absl::OkStatus();
}

}  // namespace berth::control
