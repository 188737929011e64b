#include "control/attachment_table.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "control/log.h"
#include "control/protobuf_time.h"
#include "control/spec_difference.h"
#include "control/status_details.h"

namespace berth::control {
namespace {

// One device that does not come back must not keep the others waiting.
constexpr size_t kRestoreThreads = 8;
// How long a check of connections waits for calls on the same name.
constexpr absl::Duration kCheckPatience = absl::Milliseconds(200);

}  // namespace

AttachmentTable::AttachmentTable(const AttachmentEnvironment& environment, ExportRegistry* exports,
                                 size_t max_attachments)
    : environment_([this, &environment] {
        AttachmentEnvironment own = environment;
        own.connection_lost = [wakeup = wakeup_](const std::string& name) {
          MutexLock lock(&wakeup->mutex);
          if (wakeup->check != nullptr) wakeup->check->Lost(name);
        };
        return own;
      }()),
      exports_(exports),
      max_attachments_(max_attachments),
      held_devices_(environment.kernel, [this](const std::string& name,
                                               const HeldDevice& device) { FinishDetach(name, device); }),
      connection_check_(
          environment.options.check_interval,
          {.check = [this](const std::string& name, bool by_kernel) { CheckConnections(name, by_kernel); },
           .find = [this](uint32_t index) { return FindByDevice(index); },
           .check_all =
               [this] {
                 for (const auto& attachment : All()) CheckConnections(attachment->name(), false);
               }}) {
  {
    MutexLock lock(&wakeup_->mutex);
    wakeup_->check = &connection_check_;
  }
  // Without the kernel's messages the sessions' own ends and the check from time to time are left.
  const absl::Status watched = environment_.kernel->WatchDeadLinks([wakeup = wakeup_](uint32_t index) {
    MutexLock lock(&wakeup->mutex);
    if (wakeup->check != nullptr) wakeup->check->LostByKernel(index);
  });
  if (!watched.ok()) {
    Log(LogLevel::kWarning, "dead links are not heard of", {{"error", std::string(watched.message())}});
  }
}

AttachmentTable::~AttachmentTable() {
  MutexLock lock(&wakeup_->mutex);
  wakeup_->check = nullptr;
}

std::shared_ptr<Attachment> AttachmentTable::Find(absl::string_view name) const {
  MutexLock lock(&mutex_);
  const auto found = attachments_.find(std::string(name.data(), name.size()));
  return found == attachments_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<Attachment>> AttachmentTable::All() const {
  std::vector<std::shared_ptr<Attachment>> all;
  MutexLock lock(&mutex_);
  for (const auto& [name, attachment] : attachments_) all.push_back(attachment);
  return all;
}

void AttachmentTable::Remove(const Attachment& attachment) {
  exports_->Detached(attachment.spec().export_(), attachment.name());
  MutexLock lock(&mutex_);
  attachments_.erase(attachment.name());
}

void AttachmentTable::AfterDetach(const Attachment& attachment) {
  if (attachment.gone()) {
    held_devices_.Forget(attachment.name());
    Remove(attachment);
    return;
  }
  // Others may use the export while the kernel still keeps the device.
  if (!attachment.uses_export()) exports_->Detached(attachment.spec().export_(), attachment.name());
  if (attachment.held_device()) held_devices_.Watch(attachment.name(), *attachment.held_device());
}

void AttachmentTable::FinishDetach(const std::string& name, const HeldDevice& device) {
  absl::StatusOr<NameTurns::Turn> turn =
      turns_.Take(name, absl::Now() + environment_.options.operation_timeout);
  if (!turn.ok()) return held_devices_.Watch(name, device);
  const std::shared_ptr<Attachment> attachment = Find(name);
  // A call that came first has finished it.
  if (attachment == nullptr || !attachment->held_device()) return;
  if (absl::Status status = attachment->Detach(false); !status.ok()) {
    Log(LogLevel::kWarning, "detach not finished",
        {{"attachment", name}, {"error", std::string(status.message())}});
  }
  AfterDetach(*attachment);
}

absl::Status AttachmentTable::Restore() {
  absl::StatusOr<std::vector<StoredObject<state::v1::AttachmentRecord>>> objects =
      environment_.store->LoadAttachments();
  if (!objects.ok()) return objects.status();
  for (StoredObject<state::v1::AttachmentRecord>& object : *objects) {
    std::shared_ptr<Attachment> attachment;
    if (object.record.ok()) {
      attachment = std::make_shared<Attachment>(&environment_, *std::move(object.record));
      if (attachment->uses_export()) exports_->Reserve(attachment->spec().export_(), attachment->name());
    } else {
      Log(LogLevel::kError, "attachment not restored",
          {{"attachment", object.name}, {"error", std::string(object.record.status().message())}});
      attachment = Attachment::Unreadable(&environment_, object.name, object.record.status());
    }
    MutexLock lock(&mutex_);
    attachments_.emplace(object.name, std::move(attachment));
  }
  const std::vector<std::shared_ptr<Attachment>> all = All();
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < std::min(kRestoreThreads, all.size()); ++i) {
    threads.emplace_back([this, &all, &next] {
      for (size_t n = next++; n < all.size(); n = next++) RestoreOne(*all[n]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  DetachUnknown();
  connection_check_.Start();
  return absl::OkStatus();
}

// Nobody was promised such a device: its record was removed by hand, or the state directory is an older copy.
void AttachmentTable::DetachUnknown() {
  const absl::StatusOr<std::vector<uint32_t>> indexes = environment_.kernel->ListDevices();
  if (!indexes.ok()) return;
  const std::string ours = BackendIdentifier(environment_.store->instance_id(), "");
  for (const uint32_t index : *indexes) {
    const absl::StatusOr<netlink::DeviceState> device = environment_.kernel->Inspect(index);
    if (!device.ok()) continue;
    absl::string_view name = device->backend_identifier;
    if (!absl::ConsumePrefix(&name, ours) || Find(name) != nullptr) continue;
    const absl::Status status = DetachUnused(index);
    Log(LogLevel::kWarning,
        status.ok() ? "a device that no attachment is about was detached"
                    : "a device that no attachment is about stays",
        {{"device", absl::StrCat("/dev/nbd", index)}, {"error", std::string(status.message())}});
  }
}

absl::Status AttachmentTable::DetachUnused(uint32_t index) {
  const absl::StatusOr<netlink::DeviceState> device = environment_.kernel->Inspect(index);
  if (!device.ok()) return device.status();
  if (!device->mount_points.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("mounted on ", device->mount_points.front()));
  }
  if (!device->holders.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("held by ", device->holders.front()));
  }
  const absl::StatusOr<netlink::DeviceUse> use = environment_.kernel->FindUse(index);
  if (!use.ok()) return use.status();
  if (!use->openers.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("open in ", use->openers.front()));
  }
  if (use->claimed) return absl::FailedPreconditionError("held exclusively");
  return environment_.kernel->Disconnect(index);
}

std::string AttachmentTable::FindByDevice(uint32_t index) const {
  const std::string device = absl::StrCat("/dev/nbd", index);
  for (const std::shared_ptr<Attachment>& attachment : All()) {
    if (attachment->Describe().device() == device) return attachment->name();
  }
  return "";
}

// A call that has the name's turn meanwhile may be what mends it; the next check looks again.
void AttachmentTable::CheckConnections(const std::string& name, bool by_kernel) {
  absl::StatusOr<NameTurns::Turn> turn = turns_.Take(name, absl::Now() + kCheckPatience);
  if (!turn.ok()) return;
  const std::shared_ptr<Attachment> attachment = Find(name);
  if (attachment == nullptr) return;
  const std::string before = attachment->Describe().error();
  absl::Status status = attachment->ReplaceConnections(by_kernel);
  if (status.ok() && attachment->WaitsForConnections()) {
    status = TakeBack(*attachment);
    if (!status.ok()) attachment->Fail(status);
  }
  if (!status.ok() && before != status.message()) {
    Log(LogLevel::kWarning, "connections not replaced",
        {{"attachment", name}, {"error", std::string(status.message())}});
  }
}

absl::Status AttachmentTable::TakeBack(Attachment& attachment) {
  const v1::AttachmentSpec& spec = attachment.spec();
  // What stood in the way of its image at the start may be gone: the end of a process that held its lock.
  absl::Status opened = exports_->Reopen(spec.export_(), absl::Now() + kCheckPatience);
  if (!opened.ok()) return opened;
  absl::StatusOr<std::shared_ptr<const nbd::Export>> served =
      exports_->AttachTo(spec.export_(), attachment.name(), spec.read_only());
  if (!served.ok()) return served.status();
  return attachment.Resume(*std::move(served));
}

void AttachmentTable::RestoreOne(Attachment& attachment) {
  if (!attachment.readable()) return;
  absl::Status status;
  if (attachment.detaching()) {
    status = attachment.Detach(true);
  } else if (absl::StatusOr<bool> left = attachment.LeftNothing(); !left.ok()) {
    status = left.status();
    attachment.Fail(status);
  } else if (*left) {
    // Its call was never acknowledged, and the kernel never made the device.
    status = attachment.Detach(true);
  } else {
    absl::StatusOr<std::shared_ptr<const nbd::Export>> served =
        exports_->AttachTo(attachment.spec().export_(), attachment.name(), attachment.spec().read_only());
    if (served.ok()) {
      status = attachment.Resume(*std::move(served));
    } else {
      status = served.status();
      attachment.Fail(status);
    }
  }
  if (attachment.held_device()) {
    Log(LogLevel::kWarning, "detach not finished",
        {{"attachment", attachment.name()}, {"error", std::string(status.message())}});
  } else if (!status.ok()) {
    Log(LogLevel::kError, "attachment not restored",
        {{"attachment", attachment.name()}, {"error", std::string(status.message())}});
  }
  AfterDetach(attachment);
}

absl::StatusOr<v1::Attachment> AttachmentTable::Attach(const std::string& name,
                                                       const v1::AttachmentSpec& spec, absl::Time deadline) {
  absl::StatusOr<NameTurns::Turn> turn = turns_.Take(name, deadline);
  if (!turn.ok()) return turn.status();
  if (const std::shared_ptr<Attachment> existing = Find(name)) return AnswerRepeated(*existing, spec);

  state::v1::AttachmentRecord record;
  record.set_name(name);
  *record.mutable_spec() = spec;
  *record.mutable_create_time() = ToTimestamp(absl::Now());
  const auto attachment = std::make_shared<Attachment>(&environment_, std::move(record));
  {
    MutexLock lock(&mutex_);
    if (attachments_.size() >= max_attachments_) {
      return LimitReached(
          "max-attachments",
          absl::StrCat("there are ", max_attachments_, " attachments, as many as --max-attachments allows"));
    }
    // Before the export's size is read: a resize that comes later finds it here.
    attachments_.emplace(name, attachment);
  }
  absl::StatusOr<std::shared_ptr<const nbd::Export>> served =
      exports_->AttachTo(spec.export_(), name, spec.read_only());
  if (!served.ok()) {
    MutexLock lock(&mutex_);
    attachments_.erase(name);
    return served.status();
  }
  if (absl::Status status = attachment->Attach(*std::move(served)); !status.ok()) {
    if (attachment->gone()) Remove(*attachment);
    return status;
  }
  return attachment->Describe();
}

absl::StatusOr<v1::Attachment> AttachmentTable::AnswerRepeated(Attachment& attachment,
                                                               const v1::AttachmentSpec& spec) {
  v1::Attachment shown = attachment.Describe();
  if (!attachment.readable()) {
    return FailedCondition(
        "STATE_UNREADABLE", attachment.name(),
        absl::StrCat("attachment ", Quoted(attachment.name()), " cannot be used: ", shown.error()));
  }
  if (const std::string difference = SpecDifference(attachment.spec(), spec); !difference.empty()) {
    return ExistingResource("attachment", attachment.name(),
                            absl::StrCat("attachment ", Quoted(attachment.name()),
                                         " exists with another spec (existing -> requested): ", difference));
  }
  if (attachment.detaching()) {
    return FailedCondition("DETACHING", attachment.name(),
                           absl::StrCat("attachment ", Quoted(attachment.name()),
                                        " is being detached, which ends with the last use of ",
                                        shown.device(), "; attach it again then (event DETACHED)"));
  }
  if (shown.state() == v1::ATTACHMENT_STATE_ATTACHED) return shown;
  absl::StatusOr<std::shared_ptr<const nbd::Export>> served =
      exports_->AttachTo(spec.export_(), attachment.name(), spec.read_only());
  if (!served.ok()) return served.status();
  if (absl::Status status = attachment.Resume(*std::move(served)); !status.ok()) return status;
  return attachment.Describe();
}

absl::Status AttachmentTable::Detach(const v1::DetachRequest& request, absl::Time deadline) {
  absl::StatusOr<NameTurns::Turn> turn = turns_.Take(request.name(), deadline);
  if (!turn.ok()) return turn.status();
  const std::shared_ptr<Attachment> attachment = Find(request.name());
  if (attachment == nullptr) {
    return request.allow_missing() ? absl::OkStatus() : MissingResource("attachment", request.name());
  }
  absl::Status status = attachment->Detach(request.force());
  AfterDetach(*attachment);
  return status;
}

absl::StatusOr<v1::Attachment> AttachmentTable::Get(absl::string_view name) const {
  const std::shared_ptr<Attachment> attachment = Find(name);
  if (attachment == nullptr) return MissingResource("attachment", name);
  return attachment->Describe();
}

std::vector<v1::Attachment> AttachmentTable::ListPage(const Page& page) const {
  std::vector<v1::Attachment> described;
  MutexLock lock(&mutex_);
  for (auto i = attachments_.upper_bound(page.after); i != attachments_.end() && described.size() < page.size;
       ++i) {
    described.push_back(i->second->Describe());
  }
  return described;
}

absl::Status AttachmentTable::ResizeDevices(absl::string_view export_name, uint64_t size,
                                            absl::Time deadline) {
  for (const std::shared_ptr<Attachment>& attachment : All()) {
    if (attachment->spec().export_() != export_name) continue;
    absl::StatusOr<NameTurns::Turn> turn = turns_.Take(attachment->name(), deadline);
    if (!turn.ok()) return turn.status();
    if (attachment->gone()) continue;
    if (absl::Status status = attachment->ResizeDevice(size); !status.ok()) return status;
  }
  return absl::OkStatus();
}

std::map<std::string, uint32_t> AttachmentTable::CountConnections() const {
  std::map<std::string, uint32_t> connections;
  for (const std::shared_ptr<Attachment>& attachment : All()) {
    connections[attachment->spec().export_()] += attachment->connections();
  }
  return connections;
}

std::map<std::string, uint64_t> AttachmentTable::CountStates() const {
  std::map<std::string, uint64_t> states = {
      {"attaching", 0}, {"attached", 0}, {"detaching", 0}, {"failed", 0}};
  for (const std::shared_ptr<Attachment>& attachment : All()) {
    switch (attachment->Describe().state()) {
      case v1::ATTACHMENT_STATE_ATTACHED:
        ++states["attached"];
        break;
      case v1::ATTACHMENT_STATE_DETACHING:
        ++states["detaching"];
        break;
      case v1::ATTACHMENT_STATE_FAILED:
        ++states["failed"];
        break;
      default:
        ++states["attaching"];
    }
  }
  return states;
}

void AttachmentTable::DetachAll(absl::Time deadline) {
  for (const std::shared_ptr<Attachment>& attachment : All()) {
    v1::DetachRequest request;
    request.set_name(attachment->name());
    request.set_allow_missing(true);
    if (absl::Status status = Detach(request, deadline); !status.ok()) {
      Log(LogLevel::kWarning, "attachment stays",
          {{"attachment", attachment->name()}, {"error", std::string(status.message())}});
    }
  }
}

absl::Status AttachmentTable::Shutdown(absl::Time deadline) {
  held_devices_.Stop();
  {
    MutexLock lock(&wakeup_->mutex);
    wakeup_->check = nullptr;
  }
  connection_check_.Stop();
  const std::vector<std::shared_ptr<Attachment>> all = All();
  for (const std::shared_ptr<Attachment>& attachment : all) attachment->BeginShutdown();
  absl::Status result;
  for (const std::shared_ptr<Attachment>& attachment : all) {
    if (absl::Status status = attachment->Shutdown(deadline); !status.ok()) result = std::move(status);
  }
  return result;
}

}  // namespace berth::control
