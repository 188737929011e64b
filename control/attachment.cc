#include "control/attachment.h"

#include <linux/nbd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "control/log.h"
#include "control/protobuf_time.h"
#include "control/status_details.h"
#include "control/utf8.h"
#include "nbd/capabilities.h"
#include "nbd/wire.h"

namespace berth::control {
namespace {

using netlink::DeviceState;
using state::v1::ATTACHMENT_PHASE_CONNECTED;
using state::v1::ATTACHMENT_PHASE_CONNECTING;
using state::v1::ATTACHMENT_PHASE_DISCONNECTING;

// A process that only probes (udev's) is gone by then; one that uses the device is not.
constexpr absl::Duration kProbingTime = absl::Milliseconds(500);
constexpr absl::Duration kRetryPause = absl::Milliseconds(50);
// After a disconnect: a process that leaves at its first I/O error is gone by then; a mount, or a device on
// top, stays until somebody takes it away.
constexpr absl::Duration kLeavingTime = absl::Seconds(2);
constexpr absl::Duration kStayingTime = absl::Milliseconds(100);

std::string DevicePath(uint32_t index) { return absl::StrCat("/dev/nbd", index); }

absl::Status Extended(const absl::Status& status, absl::string_view text) {
  absl::Status longer(status.code(), absl::StrCat(status.message(), text));
  status.ForEachPayload(
      [&longer](absl::string_view key, const absl::Cord& value) { longer.SetPayload(key, value); });
  return longer;
}

absl::Status InUse(absl::string_view reason, uint32_t index, absl::string_view by) {
  return FailedCondition(reason, DevicePath(index),
                         absl::StrCat(DevicePath(index), " is ", by,
                                      "; end that first, or detach with force, which gives its users I/O "
                                      "errors"));
}

}  // namespace

std::string BackendIdentifier(absl::string_view instance_id, absl::string_view name) {
  return absl::StrCat("berth:", instance_id, "/", name);
}

Attachment::Attachment(const AttachmentEnvironment* environment, state::v1::AttachmentRecord record)
    : environment_(*environment), name_(record.name()), spec_(record.spec()), record_(std::move(record)) {
  if (record_.backend_identifier().empty()) {
    record_.set_backend_identifier(BackendIdentifier(environment_.store->instance_id(), record_.name()));
  }
  MutexLock lock(&mutex_);
  shown_.set_name(record_.name());
  *shown_.mutable_spec() = record_.spec();
  *shown_.mutable_create_time() = record_.create_time();
  shown_.set_state(v1::ATTACHMENT_STATE_ATTACHING);
  if (record_.phase() == ATTACHMENT_PHASE_CONNECTED) shown_.set_device(DevicePath(record_.index()));
}

std::shared_ptr<Attachment> Attachment::Unreadable(const AttachmentEnvironment* environment,
                                                   absl::string_view name, const absl::Status& error) {
  state::v1::AttachmentRecord record;
  record.set_name(std::string(name.data(), name.size()));
  auto attachment = std::make_shared<Attachment>(environment, std::move(record));
  attachment->readable_ = false;
  attachment->Show(v1::ATTACHMENT_STATE_FAILED, error);
  return attachment;
}

v1::Attachment Attachment::Describe() const {
  MutexLock lock(&mutex_);
  return shown_;
}

uint32_t Attachment::connections() const {
  MutexLock lock(&mutex_);
  return epoch_ == 0 ? 0 : connections_;
}

absl::StatusOr<bool> Attachment::LeftNothing() const {
  if (record_.phase() != ATTACHMENT_PHASE_CONNECTING) return false;
  absl::StatusOr<std::optional<DeviceState>> device = FindDevice();
  if (!device.ok()) return device.status();
  return !device->has_value();
}

absl::Status Attachment::Attach(std::shared_ptr<const nbd::Export> served) {
  served_ = std::move(served);
  if (absl::Status status = FillRecord(); !status.ok()) {
    gone_ = true;
    return status;
  }
  if (absl::Status status = Persist(ATTACHMENT_PHASE_CONNECTING); !status.ok()) {
    gone_ = true;
    return status;
  }
  std::optional<uint32_t> index;
  if (!record_.spec().device().empty()) index = record_.index();
  absl::Status status = Connect(index);
  if (status.ok()) status = FinishAttach();
  if (!status.ok()) return Undo(std::move(status));
  return absl::OkStatus();
}

// What the spec leaves open is decided here, once: a restarted daemon connects with the same.
absl::Status Attachment::FillRecord() {
  const AttachmentOptions& options = environment_.options;
  const v1::AttachmentSpec& spec = record_.spec();
  // The kernel never resizes, and a client's permission may change while the device lives.
  const uint64_t flags =
      nbd::TransmissionFlags(*served_, nbd::ReplyStyle::kSimple) & ~uint64_t{nbd::kFlagSendResize};
  uint32_t connections = spec.connections() != 0 ? spec.connections() : options.connections;
  if ((flags & NBD_FLAG_CAN_MULTI_CONN) == 0 && connections > 1) {
    if (spec.connections() > 1) {
      return FailedCondition("SINGLE_CONNECTION_ONLY", spec.export_(),
                             absl::StrCat("export ", Quoted(spec.export_()),
                                          " cannot be used over several connections at once; ask for 1"));
    }
    connections = 1;
  }
  const absl::Duration timeout = spec.has_timeout() ? ToDuration(spec.timeout()) : absl::ZeroDuration();
  const absl::Duration dead =
      spec.has_dead_connection_timeout() ? ToDuration(spec.dead_connection_timeout()) : absl::ZeroDuration();
  record_.set_server_flags(flags);
  record_.set_connections(connections);
  record_.set_block_size(spec.block_size() != 0 ? spec.block_size() : 512);
  record_.set_timeout_seconds(static_cast<uint64_t>(
      absl::ToInt64Seconds(timeout > absl::ZeroDuration() ? timeout : options.timeout)));
  record_.set_dead_connection_timeout_seconds(static_cast<uint64_t>(
      absl::ToInt64Seconds(dead > absl::ZeroDuration() ? dead : options.dead_connection_timeout)));
  if (absl::string_view device = spec.device(); !device.empty()) {
    uint32_t index = 0;
    if (!absl::ConsumePrefix(&device, "/dev/nbd") || !absl::SimpleAtoi(device, &index)) {
      return InvalidField("spec.device", absl::StrCat(Quoted(spec.device()), " is not /dev/nbdN"));
    }
    record_.set_index(index);
  }
  if (DeviceSize() == 0) {
    return FailedCondition(
        "IMAGE_TOO_SMALL", spec.export_(),
        absl::StrCat("export ", Quoted(spec.export_()), " has ", served_->device->size(),
                     " bytes, which is less than one block of ", record_.block_size(), "; resize it first"));
  }
  return absl::OkStatus();
}

// The kernel counts in blocks; what does not fill one is hidden.
uint64_t Attachment::DeviceSize(uint64_t export_size) const {
  return export_size - export_size % record_.block_size();
}

absl::Status Attachment::Connect(const std::optional<uint32_t>& index) {
  StartSessions();
  if (absl::Status status = sessions_->Add(record_.connections()); !status.ok()) return status;
  netlink::ConnectRequest request;
  request.index = index;
  request.size_bytes = DeviceSize();
  request.block_size = record_.block_size();
  request.server_flags = record_.server_flags();
  request.timeout = absl::Seconds(record_.timeout_seconds());
  request.dead_connection_timeout = absl::Seconds(record_.dead_connection_timeout_seconds());
  request.backend_identifier = record_.backend_identifier();
  request.sockets = sessions_->kernel_ends();
  absl::StatusOr<uint32_t> connected = environment_.kernel->Connect(request);
  const size_t taken = sessions_->CloseKernelEnds();
  if (!connected.ok()) return ExplainConnectFailure(connected.status(), index);
  {
    MutexLock lock(&mutex_);
    connections_ = static_cast<uint32_t>(taken);
  }
  record_.set_index(*connected);
  return Persist(ATTACHMENT_PHASE_CONNECTED);
}

absl::Status Attachment::ExplainConnectFailure(absl::Status status,
                                               const std::optional<uint32_t>& index) const {
  if (absl::IsPermissionDenied(status)) return WithReason(std::move(status), "NO_NETLINK_PERMISSION");
  if (!absl::IsFailedPrecondition(status)) return WithReason(std::move(status), "KERNEL_REFUSED");
  const absl::StatusOr<std::vector<uint32_t>> devices = environment_.kernel->ListDevices();
  if (!devices.ok() || devices->empty()) {
    return FailedCondition("NBD_MODULE_MISSING", "nbd", status.message());
  }
  return FailedCondition("DEVICE_BUSY", index ? DevicePath(*index) : "/dev/nbd*", status.message());
}

// The device is connected; it is usable when this returns.
absl::Status Attachment::FinishAttach() {
  const uint64_t size = DeviceSize();
  if (absl::Status status =
          environment_.kernel->WaitUntilUsable(record_.index(), size, environment_.options.operation_timeout);
      !status.ok()) {
    return WithReason(std::move(status), "DEVICE_NOT_USABLE");
  }
  absl::StatusOr<DeviceState> device = environment_.kernel->Inspect(record_.index());
  if (!device.ok()) return device.status();
  {
    MutexLock lock(&mutex_);
    if (sessions_->live() == 0) {
      return absl::UnavailableError("the kernel dropped all connections of the new device");
    }
    ShowDevice(*device);
  }
  failure_.clear();
  Show(v1::ATTACHMENT_STATE_ATTACHED);
  Publish(v1::EVENT_TYPE_ATTACHED);
  return absl::OkStatus();
}

void Attachment::ShowDevice(const DeviceState& device) {
  shown_.set_device(DevicePath(device.index));
  shown_.set_size_bytes(device.size_bytes);
  shown_.clear_partitions();
  for (const std::string& partition : device.partitions)
    shown_.add_partitions(absl::StrCat("/dev/", partition));
}

absl::StatusOr<std::optional<DeviceState>> Attachment::FindDevice() const {
  const auto is_ours = [this](const DeviceState& device) {
    return device.exists && device.backend_identifier == record_.backend_identifier();
  };
  if (record_.phase() != ATTACHMENT_PHASE_CONNECTING && readable_) {
    absl::StatusOr<DeviceState> device = environment_.kernel->Inspect(record_.index());
    if (device.ok() && is_ours(*device)) return std::optional<DeviceState>(*std::move(device));
  }
  absl::StatusOr<std::vector<uint32_t>> indexes = environment_.kernel->ListDevices();
  if (!indexes.ok()) return indexes.status();
  for (uint32_t index : *indexes) {
    absl::StatusOr<DeviceState> device = environment_.kernel->Inspect(index);
    if (device.ok() && is_ours(*device)) return std::optional<DeviceState>(*std::move(device));
  }
  return std::optional<DeviceState>();
}

absl::Status Attachment::Release() {
  absl::StatusOr<std::optional<DeviceState>> device = FindDevice();
  if (!device.ok()) return device.status();
  if (!device->has_value()) return absl::OkStatus();
  const uint32_t index = (*device)->index;
  if (absl::Status status = environment_.kernel->Disconnect(index); !status.ok()) return status;
  absl::Status status = environment_.kernel->WaitUntilFree(index, environment_.options.operation_timeout);
  if (status.ok()) return status;
  return FailedCondition(
      "DEVICE_HELD", DevicePath(index),
      absl::StrCat(DevicePath(index), " is disconnected, but the kernel has not let it go: ",
                   status.message(), "; close it there, then detach"));
}

absl::Status Attachment::Undo(absl::Status reason) {
  const absl::Status released = Release();
  if (const absl::Status ended = EndSessions(); !ended.ok()) {
    Log(LogLevel::kError, "sessions did not end", {{"attachment", name()}, {"error", ended.ToString()}});
  }
  if (!released.ok()) {
    reason = Extended(reason, absl::StrCat("; undoing it failed as well: ", released.message()));
    Fail(reason);
    return reason;
  }
  // Where the record cannot be removed, the next start finds no device for it and drops it.
  if (const absl::Status forgotten = environment_.store->RemoveAttachment(name()); !forgotten.ok()) {
    Log(LogLevel::kWarning, "record not removed", {{"attachment", name()}, {"error", forgotten.ToString()}});
  }
  gone_ = true;
  return reason;
}

absl::Status Attachment::Resume(std::shared_ptr<const nbd::Export> served) {
  if (absl::Status status = EndSessions(); !status.ok()) return status;
  served_ = std::move(served);
  Show(v1::ATTACHMENT_STATE_ATTACHING);
  absl::Status status = ResumeDevice();
  if (!status.ok()) {
    if (const absl::Status ended = EndSessions(); !ended.ok()) status = Extended(status, ended.message());
    Fail(status);
  }
  return status;
}

absl::Status Attachment::ResumeDevice() {
  absl::StatusOr<std::optional<DeviceState>> device = FindDevice();
  if (!device.ok()) return device.status();
  if (device->has_value()) return Reconnect((*device)->index);

  // The device is gone (the machine was started anew): its users are too, so any other will do.
  absl::Status status = Connect(record_.index());
  if (absl::IsFailedPrecondition(status) && record_.spec().device().empty()) {
    // The sessions of the refused attempt have no kernel at their other ends and end by themselves.
    status = Connect(std::nullopt);
  }
  if (status.ok()) status = FinishAttach();
  if (!status.ok()) {
    const absl::Status released = Release();
    if (!released.ok()) return Extended(status, absl::StrCat("; and: ", released.message()));
  }
  return status;
}

absl::Status Attachment::ResizeDevice(uint64_t export_size) {
  if (sessions_ == nullptr || sessions_->live() == 0) return absl::OkStatus();
  const uint64_t size = DeviceSize(export_size);
  absl::StatusOr<DeviceState> device = environment_.kernel->Inspect(record_.index());
  if (!device.ok()) return device.status();
  if (device->backend_identifier != record_.backend_identifier()) {
    return absl::UnavailableError(
        absl::StrCat(DevicePath(record_.index()), " is not this attachment's any more"));
  }
  if (device->size_bytes != size) {
    netlink::ReconfigureRequest request;
    request.index = record_.index();
    request.backend_identifier = record_.backend_identifier();
    request.size_bytes = size;
    if (absl::Status status = environment_.kernel->Reconfigure(request); !status.ok()) return status;
    if (absl::Status status = environment_.kernel->WaitUntilUsable(record_.index(), size,
                                                                   environment_.options.operation_timeout);
        !status.ok()) {
      return status;
    }
    device = environment_.kernel->Inspect(record_.index());
    if (!device.ok()) return device.status();
  }
  MutexLock lock(&mutex_);
  ShowDevice(*device);
  return absl::OkStatus();
}

absl::Status Attachment::Detach(bool force) {
  absl::StatusOr<std::optional<DeviceState>> device = FindDevice();
  if (!device.ok()) return device.status();
  if (device->has_value()) {
    if (!force && !detaching()) {
      if (absl::Status status = RefuseWhileInUse(**device); !status.ok()) return status;
    }
    record_.set_index((*device)->index);
    if (readable_) {
      if (absl::Status status = Persist(ATTACHMENT_PHASE_DISCONNECTING); !status.ok()) return status;
    }
    if (absl::Status status = Disconnect(**device, force); !status.ok()) {
      if (!held_device_) Fail(status);
      return status;
    }
  }
  held_device_.reset();
  if (absl::Status status = EndSessions(); !status.ok()) {
    Fail(status);
    return status;
  }
  if (absl::Status status = environment_.store->RemoveAttachment(name()); !status.ok()) {
    Fail(status);
    return status;
  }
  gone_ = true;
  Show(v1::ATTACHMENT_STATE_DETACHING);  // What an earlier call said of users is over.
  Publish(v1::EVENT_TYPE_DETACHED);
  return absl::OkStatus();
}

absl::Status Attachment::Disconnect(const DeviceState& device, bool force) {
  if (!held_device_) Show(v1::ATTACHMENT_STATE_DETACHING);
  {
    MutexLock lock(&mutex_);
    shown_.set_device(DevicePath(device.index));
    epoch_ = 0;  // The connections end now, and should.
  }
  if (absl::Status status = environment_.kernel->Disconnect(device.index); !status.ok()) return status;
  // Nothing of the device reaches the image any more, whoever still has it open.
  if (absl::Status status = EndSessions(); !status.ok()) return status;
  return WaitForLastUser(device, force);
}

absl::Status Attachment::WaitForLastUser(const DeviceState& device, bool force) {
  const bool stays = !device.mount_points.empty() || !device.holders.empty();
  absl::Duration patience = environment_.options.operation_timeout;
  if (force || detaching()) patience = std::min(patience, stays ? kStayingTime : kLeavingTime);
  const absl::Status held = environment_.kernel->WaitUntilFree(device.index, patience);
  if (held.ok()) return held;
  const absl::Status status = FailedCondition(
      "DETACHING", DevicePath(device.index),
      absl::StrCat(DevicePath(device.index),
                   " is disconnected, and its users get I/O errors, but the kernel keeps it: ",
                   held.message(), "; the detach finishes by itself once the last user has closed it"));
  Show(v1::ATTACHMENT_STATE_DETACHING, status);
  const bool first = !held_device_.has_value();
  held_device_ = HeldDevice{device.index, record_.backend_identifier()};
  if (first) Publish(v1::EVENT_TYPE_DETACHING);
  return status;
}

absl::Status Attachment::RefuseWhileInUse(const DeviceState& device) const {
  if (!device.mount_points.empty()) {
    return InUse("DEVICE_MOUNTED", device.index, absl::StrCat("mounted on ", device.mount_points.front()));
  }
  if (!device.holders.empty()) {
    return InUse("DEVICE_HELD", device.index, absl::StrCat("held by ", device.holders.front()));
  }
  // Looking closer opens the device, which needs somebody who serves it.
  if (sessions_ == nullptr || sessions_->running() == 0) return absl::OkStatus();
  const absl::Time deadline = absl::Now() + kProbingTime;
  while (true) {
    absl::StatusOr<netlink::DeviceUse> use = environment_.kernel->FindUse(device.index);
    if (!use.ok()) return use.status();
    if (!use->claimed && use->openers.empty()) return absl::OkStatus();
    if (absl::Now() >= deadline) {
      return InUse("DEVICE_HELD", device.index,
                   use->openers.empty() ? "mounted in another mount namespace, or held exclusively"
                                        : absl::StrCat("open in ", use->openers.front()));
    }
    absl::SleepFor(kRetryPause);
  }
}

void Attachment::Fail(const absl::Status& error) {
  Show(v1::ATTACHMENT_STATE_FAILED, error);
  if (error.message() == failure_) return;
  failure_ = std::string(error.message());
  Publish(v1::EVENT_TYPE_ATTACHMENT_FAILED);
}

void Attachment::BeginShutdown() {
  {
    MutexLock lock(&mutex_);
    epoch_ = 0;
  }
  if (sessions_ != nullptr) sessions_->Stop();
}

absl::Status Attachment::Shutdown(absl::Time deadline) { return EndSessionsBy(deadline); }

absl::Status Attachment::Persist(state::v1::AttachmentPhase phase) {
  state::v1::AttachmentRecord record = record_;
  record.set_phase(phase);
  if (absl::Status status = environment_.store->Put(record); !status.ok()) {
    return WithReason(std::move(status), "STATE_NOT_WRITTEN");
  }
  record_ = std::move(record);
  return absl::OkStatus();
}

void Attachment::Show(v1::AttachmentState state, const absl::Status& error) {
  MutexLock lock(&mutex_);
  shown_.set_state(state);
  shown_.set_error(ValidUtf8(error.message()));
}

void Attachment::Publish(v1::EventType type) const {
  const v1::Attachment shown = Describe();
  v1::Event event;
  event.set_type(type);
  event.set_export_(shown.spec().export_());
  event.set_attachment(shown.name());
  event.set_device(shown.device());
  event.set_message(shown.error());
  environment_.events->Publish(std::move(event));
}

}  // namespace berth::control
