#include "control/export_registry.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "control/export_block_sizes.h"
#include "control/export_resize.h"
#include "control/log.h"
#include "control/protobuf_time.h"
#include "control/request_watch.h"
#include "control/secret_field.h"
#include "control/spec_difference.h"
#include "control/status_details.h"
#include "control/utf8.h"
#include "nbd/access_rules.h"

namespace berth::control {
namespace {

// Counts the nbd::Exports that exist of one entry, so that its image is closed on an ordinary thread, after
// the last session let go of it.
struct References {
  Mutex mutex;
  CondVar changed;
  size_t count ABSL_GUARDED_BY(mutex) = 0;

  bool WaitUntilNone(absl::Time deadline) {
    MutexLock lock(&mutex);
    while (count > 0) {
      if (!changed.WaitUntil(&mutex, deadline) && count > 0) return false;
    }
    return true;
  }
};

absl::Status Unreadable(absl::string_view name, const absl::Status& error) {
  return FailedCondition("STATE_UNREADABLE", name,
                         absl::StrCat("export ", Quoted(name), " cannot be used: ", error.message()));
}

}  // namespace

// Written by whoever has the name's turn, and always with the registry's mutex held; so the former may read
// it without.
struct ExportRegistry::Entry {
  std::string name;
  v1::ExportSpec spec;
  google::protobuf::Timestamp create_time;
  absl::Status error;    // Why there is no image.
  bool readable = true;  // Its record on disk.
  ExportImage image;
  std::shared_ptr<ExportMetrics> metrics;
  std::shared_ptr<nbd::RequestObserver> observer;
  std::shared_ptr<References> references = std::make_shared<References>();
  std::shared_ptr<const nbd::Export> served;  // Null without an image, and while it is being deleted.
  uint32_t clients = 0;
};

ExportRegistry::ExportRegistry(const ExportRegistryOptions& options, ImageRoots roots, StateStore* store,
                               EventHub* events)
    : options_(options), roots_(std::move(roots)), store_(store), events_(events) {}

ExportRegistry::~ExportRegistry() = default;

std::shared_ptr<const nbd::Export> ExportRegistry::Serve(const Entry& entry, bool read_only) {
  auto served = std::make_unique<nbd::Export>();
  served->name = entry.name;
  served->description = entry.spec.description();
  served->device = entry.image.device;
  served->read_only = read_only || entry.image.device->traits().read_only;
  served->multi_connection = entry.image.device->traits().flush_covers_all_channels;
  served->observer = entry.observer;
  served->require_tls = entry.spec.require_tls();
  // Rules were checked when they came. Those of a state file that somebody has edited refuse everybody.
  const auto& rules = entry.spec.allowed_clients();
  absl::StatusOr<nbd::AccessRules> allowed = nbd::AccessRules::Parse({rules.begin(), rules.end()});
  served->allowed_clients = allowed.ok() ? *std::move(allowed) : *nbd::AccessRules::Parse({"!*"});
  served->block_sizes = ToBlockSizes(entry.spec.block_sizes());
  if (entry.spec.client_resize()) {
    served->resize = [this, name = entry.name](uint64_t size) { return ResizeForClient(name, size); };
  }
  std::shared_ptr<References> references = entry.references;
  {
    MutexLock lock(&references->mutex);
    ++references->count;
  }
  return std::shared_ptr<const nbd::Export>(served.release(), [references](const nbd::Export* last) {
    delete last;
    {
      MutexLock lock(&references->mutex);
      --references->count;
    }
    references->changed.SignalAll();
  });
}

bool ExportRegistry::IsExclusive(const Entry& entry) {
  return !entry.spec.shared_writers() && !entry.image.device->traits().read_only;
}

state::v1::ExportRecord ExportRegistry::RecordOf(const Entry& entry) {
  state::v1::ExportRecord record;
  record.set_name(entry.name);
  *record.mutable_spec() = entry.spec;
  *record.mutable_create_time() = entry.create_time;
  return record;
}

v1::Export ExportRegistry::Describe(const Entry& entry) const {
  v1::Export described;
  described.set_name(entry.name);
  *described.mutable_spec() = entry.spec;
  *described.mutable_create_time() = entry.create_time;
  if (entry.image.device != nullptr) described.set_size_bytes(entry.image.device->size());
  described.set_connections(entry.clients);
  if (const auto users = attachments_.find(entry.name); users != attachments_.end()) {
    for (const std::string& attachment : users->second) described.add_attachments(attachment);
  }
  described.set_error(ValidUtf8(entry.error.message()));
  return described;
}

std::shared_ptr<ExportRegistry::Entry> ExportRegistry::FindEntry(absl::string_view name) const {
  MutexLock lock(&mutex_);
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : found->second;
}

absl::Status ExportRegistry::Open(Entry& entry, const v1::Secret& given) {
  const absl::StatusOr<Secret> secret = ReadSecretField("spec.image.secret", given, options_.secret_roots);
  absl::StatusOr<ExportImage> image =
      secret.ok() ? OpenExportImage(entry.spec, *secret, roots_) : secret.status();
  MutexLock lock(&mutex_);
  entry.error = image.status();
  if (!image.ok()) return image.status();
  entry.image = *std::move(image);
  entry.metrics = std::make_shared<ExportMetrics>();
  entry.observer = std::make_shared<RequestWatch>(entry.name, entry.metrics, events_);
  entry.served = Serve(entry, false);
  return absl::OkStatus();
}

absl::Status ExportRegistry::Restore() {
  absl::StatusOr<std::vector<StoredObject<state::v1::ExportRecord>>> objects = store_->LoadExports();
  if (!objects.ok()) return objects.status();
  for (StoredObject<state::v1::ExportRecord>& object : *objects) {
    auto entry = std::make_shared<Entry>();
    entry->name = object.name;
    absl::Status status = object.record.status();
    if (status.ok()) {
      entry->spec = object.record->spec();
      entry->create_time = object.record->create_time();
      // Sessions rely on them, and the file may have been edited.
      status = CheckBlockSizes("spec.block_sizes", entry->spec.block_sizes());
      if (status.ok()) {
        status = Open(*entry, entry->spec.image().secret());
      } else {
        entry->error = status;
      }
    } else {
      entry->readable = false;
      entry->error = status;
    }
    if (!status.ok()) {
      Log(LogLevel::kError, "export not served",
          {{"export", object.name}, {"error", std::string(status.message())}});
      Publish(v1::EVENT_TYPE_EXPORT_FAILED, object.name, status.message());
    }
    MutexLock lock(&mutex_);
    entries_.emplace(object.name, std::move(entry));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Export> ExportRegistry::Create(const std::string& name, const v1::ExportSpec& spec,
                                                  absl::Time deadline) {
  absl::StatusOr<NameTurns::Turn> turn = turns_.Take(name, deadline);
  if (!turn.ok()) return turn.status();
  if (const std::shared_ptr<Entry> existing = FindEntry(name)) return AnswerRepeated(*existing, spec);
  {
    MutexLock lock(&mutex_);
    if (entries_.size() + being_made_ >= options_.max_exports) {
      return LimitReached("max-exports", absl::StrCat("there are ", options_.max_exports,
                                                      " exports, as many as --max-exports allows"));
    }
    ++being_made_;
  }
  const absl::Cleanup made = [this] {
    MutexLock lock(&mutex_);
    --being_made_;
  };
  auto entry = std::make_shared<Entry>();
  entry->name = name;
  entry->spec = spec;
  ForgetValue(&entry->spec);
  entry->create_time = ToTimestamp(absl::Now());
  if (absl::Status status = Open(*entry, spec.image().secret()); !status.ok()) return status;
  if (absl::Status status = store_->Put(RecordOf(*entry)); !status.ok()) {
    return WithReason(std::move(status), "STATE_NOT_WRITTEN");
  }
  v1::Export described;
  {
    MutexLock lock(&mutex_);
    described = Describe(*entry);
    entries_.emplace(name, std::move(entry));
  }
  Publish(v1::EVENT_TYPE_EXPORT_CREATED, name);
  return described;
}

absl::StatusOr<v1::Export> ExportRegistry::AnswerRepeated(Entry& entry, const v1::ExportSpec& spec) {
  if (!entry.readable) return Unreadable(entry.name, entry.error);
  v1::ExportSpec requested = spec;
  ForgetValue(&requested);
  if (const std::string difference = SpecDifference(entry.spec, requested); !difference.empty()) {
    return ExistingResource("export", entry.name,
                            absl::StrCat("export ", Quoted(entry.name),
                                         " exists with another spec (existing -> requested): ", difference));
  }
  // What stood in the way after the restart may be gone.
  if (!entry.error.ok()) {
    if (absl::Status status = Open(entry, spec.image().secret()); !status.ok()) return status;
  }
  MutexLock lock(&mutex_);
  return Describe(entry);
}

absl::Status ExportRegistry::Reopen(const std::string& name, absl::Time deadline) {
  absl::StatusOr<NameTurns::Turn> turn = turns_.Take(name, deadline);
  if (!turn.ok()) return turn.status();
  const std::shared_ptr<Entry> entry = FindEntry(name);
  if (entry == nullptr) return MissingResource("export", name);
  if (!entry->readable) return Unreadable(entry->name, entry->error);
  return entry->error.ok() ? absl::OkStatus() : Open(*entry, entry->spec.image().secret());
}

absl::StatusOr<std::shared_ptr<ExportRegistry::Entry>> ExportRegistry::FindUsable(
    const std::string& name) const {
  std::shared_ptr<Entry> entry = FindEntry(name);
  if (entry == nullptr) return MissingResource("export", name);
  if (!entry->readable) return Unreadable(entry->name, entry->error);
  if (!entry->error.ok()) return FailedCondition("EXPORT_FAILED", entry->name, entry->error.message());
  return entry;
}

absl::StatusOr<v1::Export> ExportRegistry::Update(const v1::UpdateExportRequest& request,
                                                  absl::Time deadline) {
  absl::StatusOr<NameTurns::Turn> turn = turns_.Take(request.name(), deadline);
  if (!turn.ok()) return turn.status();
  const absl::StatusOr<std::shared_ptr<Entry>> entry = FindUsable(request.name());
  if (!entry.ok()) return entry.status();
  return Apply(**entry, request);
}

absl::Status ExportRegistry::ResizeForClient(const std::string& name, uint64_t size) {
  if (absl::Status status = CheckSize("size_bytes", size); !status.ok()) return status;
  // Delete() has the turn while it waits for its clients, this one included; so it must not wait as long.
  absl::StatusOr<NameTurns::Turn> turn = turns_.Take(name, absl::Now() + options_.operation_timeout / 4);
  if (!turn.ok()) return turn.status();
  const absl::StatusOr<std::shared_ptr<Entry>> entry = FindUsable(name);
  if (!entry.ok()) return entry.status();
  // It may have been turned off since this client connected.
  if (!(*entry)->spec.client_resize()) {
    return FailedCondition("NOT_RESIZABLE", name,
                           absl::StrCat("export ", Quoted(name), " does not let clients resize it"));
  }
  v1::UpdateExportRequest request;
  request.set_name(name);
  request.mutable_update_mask()->add_paths("size_bytes");
  request.set_size_bytes(size);
  request.set_allow_shrink(true);
  const absl::Status status = Apply(**entry, request).status();
  // The text goes to the client, for which this host's files have no names.
  const std::string& path = (*entry)->spec.image().path();
  if (status.ok() || path.empty()) return status;
  return absl::Status(status.code(), absl::StrReplaceAll(status.message(), {{path, "the image"}}));
}

absl::StatusOr<v1::Export> ExportRegistry::Apply(Entry& entry, const v1::UpdateExportRequest& request) {
  v1::ExportSpec spec = entry.spec;
  bool resize = false;
  for (const std::string& path : request.update_mask().paths()) {
    if (path == "description") spec.set_description(request.description());
    if (path == "rate_limit") *spec.mutable_rate_limit() = request.rate_limit();
    if (path == "require_tls") spec.set_require_tls(request.require_tls());
    if (path == "allowed_clients") *spec.mutable_allowed_clients() = request.allowed_clients();
    if (path == "block_sizes") *spec.mutable_block_sizes() = request.block_sizes();
    if (path == "client_resize") spec.set_client_resize(request.client_resize());
    if (path == "size_bytes") resize = true;
  }
  if (absl::Status status = CheckClientResize("client_resize", spec); !status.ok()) return status;
  // After all checks, as it is the one that cannot be taken back.
  if (resize) {
    const uint64_t size = request.size_bytes();
    const auto resize_devices = [this, &entry](uint64_t bytes) {
      return options_.resize_devices(entry.name, bytes);
    };
    absl::Status status = ResizeExport(entry.name, entry.spec.image().path(), size, request.allow_shrink(),
                                       *entry.image.device, resize_devices);
    if (!status.ok()) return status;
    // A file knows its size itself.
    if (spec.image().size_bytes() != 0) spec.mutable_image()->set_size_bytes(spec.offset_bytes() + size);
  }
  state::v1::ExportRecord record = RecordOf(entry);
  *record.mutable_spec() = spec;
  if (absl::Status status = store_->Put(std::move(record)); !status.ok()) {
    return WithReason(std::move(status), "STATE_NOT_WRITTEN");
  }
  entry.image.rate_limit->SetLimits(ToRateLimits(spec.rate_limit()));
  // Dropped without the lock: it may be the last but one reference, and is no reason to keep readers waiting.
  std::shared_ptr<const nbd::Export> before;
  v1::Export described;
  {
    MutexLock lock(&mutex_);
    entry.spec = std::move(spec);
    before = std::exchange(entry.served, Serve(entry, false));
    described = Describe(entry);
  }
  Publish(v1::EVENT_TYPE_EXPORT_UPDATED, entry.name);
  return described;
}

absl::Status ExportRegistry::BeginClosing(Entry& entry, bool force) {
  MutexLock lock(&mutex_);
  if (const auto users = attachments_.find(entry.name); users != attachments_.end()) {
    return FailedCondition("EXPORT_IN_USE", *users->second.begin(),
                           absl::StrCat("export ", Quoted(entry.name), " is attached as ",
                                        Quoted(*users->second.begin()), "; detach that first"));
  }
  if (entry.clients > 0 && !force) {
    return FailedCondition("EXPORT_IN_USE", absl::StrCat(entry.clients, " connections"),
                           absl::StrCat("export ", Quoted(entry.name), " is served to network clients on ",
                                        entry.clients, " connections; end them, or delete with force"));
  }
  entry.served.reset();
  return absl::OkStatus();
}

absl::Status ExportRegistry::Delete(const v1::DeleteExportRequest& request, absl::Time deadline,
                                    absl::FunctionRef<void(const std::string& name)> disconnect_clients) {
  const std::string& name = request.name();
  absl::StatusOr<NameTurns::Turn> turn = turns_.Take(name, deadline);
  if (!turn.ok()) return turn.status();
  std::shared_ptr<Entry> entry = FindEntry(name);
  if (entry == nullptr) {
    return request.allow_missing() ? absl::OkStatus() : MissingResource("export", name);
  }
  if (absl::Status status = BeginClosing(*entry, request.force()); !status.ok()) return status;
  // From here nobody new finds it.
  if (request.force()) {
    // Their requests may wait for a rate limit for longer than this call may take.
    if (entry->image.rate_limit != nullptr) entry->image.rate_limit->SetLimits({});
    disconnect_clients(name);
  }
  absl::Status status;
  if (!entry->references->WaitUntilNone(absl::Now() + options_.operation_timeout)) {
    status = WithReason(absl::DeadlineExceededError(absl::StrCat(
                            "clients of export ", Quoted(name), " did not go within ",
                            absl::FormatDuration(options_.operation_timeout), "; the export stays")),
                        "EXPORT_IN_USE");
  } else if (status = store_->RemoveExport(name); !status.ok()) {
    status = WithReason(std::move(status), "STATE_NOT_WRITTEN");
  }
  if (!status.ok()) {
    MutexLock lock(&mutex_);
    if (entry->image.device == nullptr) return status;
    entry->image.rate_limit->SetLimits(ToRateLimits(entry->spec.rate_limit()));
    entry->served = Serve(*entry, false);
    return status;
  }
  {
    MutexLock lock(&mutex_);
    entries_.erase(name);
  }
  entry.reset();  // Closes the image, before the answer.
  Publish(v1::EVENT_TYPE_EXPORT_DELETED, name);
  return absl::OkStatus();
}

absl::StatusOr<v1::Export> ExportRegistry::Get(absl::string_view name) const {
  const std::shared_ptr<Entry> entry = FindEntry(name);
  if (entry == nullptr) return MissingResource("export", name);
  MutexLock lock(&mutex_);
  return Describe(*entry);
}

std::vector<v1::Export> ExportRegistry::ListPage(const Page& page) const {
  std::vector<v1::Export> described;
  MutexLock lock(&mutex_);
  for (auto i = entries_.upper_bound(page.after); i != entries_.end() && described.size() < page.size; ++i) {
    described.push_back(Describe(*i->second));
  }
  return described;
}

std::vector<ExportRegistry::Activity> ExportRegistry::ListActivity() const {
  std::vector<Activity> activities;
  MutexLock lock(&mutex_);
  activities.reserve(entries_.size());
  for (const auto& [name, entry] : entries_) {
    activities.push_back({.name = name,
                          .size_bytes = entry->image.device == nullptr ? 0 : entry->image.device->size(),
                          .clients = entry->clients,
                          .metrics = entry->metrics});
  }
  return activities;
}

void ExportRegistry::LiftRateLimits() {
  MutexLock lock(&mutex_);
  for (const auto& [name, entry] : entries_) {
    if (entry->image.rate_limit != nullptr) entry->image.rate_limit->SetLimits({});
  }
}

absl::StatusOr<std::shared_ptr<const nbd::Export>> ExportRegistry::AttachTo(absl::string_view name,
                                                                            const std::string& attachment,
                                                                            bool read_only) {
  MutexLock lock(&mutex_);
  const auto found = entries_.find(name);
  if (found == entries_.end()) return MissingResource("export", name);
  const Entry& entry = *found->second;
  if (entry.served == nullptr) {
    return FailedCondition("EXPORT_FAILED", name,
                           absl::StrCat("export ", Quoted(name), " cannot be used: ",
                                        entry.error.ok() ? "it is being deleted" : entry.error.message()));
  }
  std::set<std::string>& users = attachments_[entry.name];
  if (!users.contains(attachment) && IsExclusive(entry)) {
    if (!users.empty()) {
      return FailedCondition(
          "EXPORT_IN_USE", *users.begin(),
          absl::StrCat("export ", Quoted(name), " is writable and attached as ", Quoted(*users.begin()),
                       "; detach that first, or make the export read-only or shared_writers"));
    }
    if (entry.clients > 0) {
      attachments_.erase(entry.name);
      return FailedCondition("EXPORT_IN_USE", absl::StrCat(entry.clients, " connections"),
                             absl::StrCat("export ", Quoted(name),
                                          " is writable and served to network clients on ", entry.clients,
                                          " connections; end them first, or make the export read-only or "
                                          "shared_writers"));
    }
  }
  users.insert(attachment);
  if (read_only && !entry.served->read_only) return Serve(entry, true);
  return entry.served;
}

void ExportRegistry::Reserve(const std::string& name, const std::string& attachment) {
  MutexLock lock(&mutex_);
  attachments_[name].insert(attachment);
}

void ExportRegistry::Detached(const std::string& name, const std::string& attachment) {
  MutexLock lock(&mutex_);
  const auto users = attachments_.find(name);
  if (users == attachments_.end()) return;
  users->second.erase(attachment);
  if (users->second.empty()) attachments_.erase(users);
}

absl::Status ExportRegistry::AdmitClient(absl::string_view name) {
  MutexLock lock(&mutex_);
  const auto found = entries_.find(name);
  if (found == entries_.end() || found->second->served == nullptr) return MissingResource("export", name);
  Entry& entry = *found->second;
  if (const auto users = attachments_.find(name); users != attachments_.end() && IsExclusive(entry)) {
    return FailedCondition("EXPORT_IN_USE", *users->second.begin(),
                           absl::StrCat("export ", Quoted(name), " is writable and attached as ",
                                        Quoted(*users->second.begin())));
  }
  ++entry.clients;
  return absl::OkStatus();
}

void ExportRegistry::ClientGone(absl::string_view name) {
  MutexLock lock(&mutex_);
  if (const auto found = entries_.find(name); found != entries_.end()) --found->second->clients;
}

std::shared_ptr<const nbd::Export> ExportRegistry::Find(absl::string_view name) const {
  MutexLock lock(&mutex_);
  const auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : found->second->served;
}

std::vector<std::shared_ptr<const nbd::Export>> ExportRegistry::List() const {
  std::vector<std::shared_ptr<const nbd::Export>> served;
  MutexLock lock(&mutex_);
  served.reserve(entries_.size());
  for (const auto& [name, entry] : entries_) {
    if (entry->served != nullptr) served.push_back(entry->served);
  }
  return served;
}

void ExportRegistry::Publish(v1::EventType type, const std::string& name, absl::string_view message) {
  v1::Event event;
  event.set_type(type);
  event.set_export_(name);
  event.set_message(std::string(message.data(), message.size()));
  events_->Publish(std::move(event));
}

}  // namespace berth::control
