#include "control/operations.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "berth/v1/monitoring.pb.h"
#include "control/protobuf_time.h"
#include "control/spec_difference.h"
#include "control/status_details.h"
#include "control/utf8.h"

namespace berth::control {
namespace {

// A call whose client hung up is noticed after this long.
constexpr absl::Duration kAbandonedCheck = absl::Milliseconds(500);
// What is kept is bounded by this times the number.
constexpr size_t kMaxMessageBytes = 1024;

absl::Status Stopping() {
  return WithReason(absl::UnavailableError("berthd is stopping; send it again once it is back"),
                    "SERVER_STOPPING");
}

// "OPERATION_KIND_CREATE_IMAGE" as people read it: "create image".
std::string KindText(v1::OperationKind kind) {
  std::string text =
      absl::AsciiStrToLower(absl::StripPrefix(v1::OperationKind_Name(kind), "OPERATION_KIND_"));
  std::replace(text.begin(), text.end(), '_', ' ');
  return text;
}

}  // namespace

// Guarded by the mutex of the Operations where it is not const; `progress` looks after itself.
struct Operations::Record {
  Record(std::function<bool()> abandoned) : progress(std::move(abandoned)) {}

  v1::Operation operation;
  std::unique_ptr<google::protobuf::Message> request;
  std::unique_ptr<google::protobuf::Message> answer;
  absl::Status status;
  absl::Time end_time;
  Progress progress;
};

Operations::Operations(const OperationsOptions& options, WatcherSlots* watchers, EventHub* events)
    : options_(options), watchers_(watchers), events_(events) {}

Operations::~Operations() = default;

absl::Status Operations::Run(const Call& call, absl::FunctionRef<absl::Status(Progress&)> work,
                             google::protobuf::Message* answer) {
  bool joined = false;
  absl::StatusOr<std::shared_ptr<Record>> record = Begin(call, &joined);
  if (!record.ok()) return record.status();
  if (joined) return Join(call, **record, answer);
  absl::Status status = work((*record)->progress);
  return End(*record, std::move(status), *answer);
}

absl::StatusOr<std::shared_ptr<Operations::Record>> Operations::Begin(const Call& call, bool* joined) {
  MutexLock lock(&mutex_);
  Forget();
  if (!call.name.empty()) {
    if (const auto found = named_.find(call.name); found != named_.end()) {
      *joined = true;
      return found->second;
    }
  }
  if (closed_) return Stopping();
  if (running_.size() >= options_.max_running) {
    return LimitReached("operations",
                        absl::StrCat("there are ", running_.size(),
                                     " operations under way, as many as --rpc-threads leaves room for; wait "
                                     "for one, or cancel one"));
  }
  auto record = std::make_shared<Record>(call.name.empty() ? call.abandoned : nullptr);
  record->operation.set_name(call.name);
  record->operation.set_kind(call.kind);
  record->operation.set_subject(ValidUtf8(call.subject));
  record->operation.set_unit(call.unit);
  record->operation.set_state(v1::OPERATION_STATE_RUNNING);
  *record->operation.mutable_start_time() = ToTimestamp(absl::Now());
  running_.insert(record);
  if (!call.name.empty()) {
    record->request.reset(call.request->New());
    record->request->CopyFrom(*call.request);
    named_.emplace(call.name, record);
  }
  return record;
}

absl::Status Operations::Join(const Call& call, const Record& record,
                              google::protobuf::Message* answer) const {
  // The request never changes.
  const bool same_type = record.request->GetDescriptor() == call.request->GetDescriptor();
  const std::string difference = same_type ? SpecDifference(*record.request, *call.request)
                                           : absl::StrCat(record.request->GetDescriptor()->name(), " -> ",
                                                          call.request->GetDescriptor()->name());
  if (!difference.empty()) {
    return ExistingResource(
        "operation", call.name,
        absl::StrCat("operation ", Quoted(call.name),
                     " exists with another request (existing -> requested): ", difference));
  }
  MutexLock lock(&mutex_);
  if (record.operation.state() == v1::OPERATION_STATE_RUNNING) {
    const absl::StatusOr<WatcherSlots::Slot> slot = watchers_->Take();
    if (!slot.ok()) return slot.status();
    while (record.operation.state() == v1::OPERATION_STATE_RUNNING) {
      if (closed_) return Stopping();
      if (call.abandoned && call.abandoned()) return absl::CancelledError("the client hung up");
      changed_.WaitUntil(&mutex_, absl::Now() + kAbandonedCheck);
    }
  }
  if (record.status.ok()) answer->CopyFrom(*record.answer);
  return record.status;
}

absl::Status Operations::End(const std::shared_ptr<Record>& record, absl::Status status,
                             const google::protobuf::Message& answer) {
  v1::Event event;
  {
    MutexLock lock(&mutex_);
    v1::Operation& operation = record->operation;
    const bool cancelled = absl::IsCancelled(status);
    if (cancelled) {
      // One that a stop of the server cancelled is to be sent again, others are not.
      status =
          closed_ ? Stopping() : WithReason(absl::CancelledError(status.message()), "OPERATION_CANCELLED");
    }
    record->status = status;
    record->end_time = absl::Now();
    running_.erase(record);
    if (status.ok()) {
      record->progress.SetDone(record->progress.total());
      operation.set_state(v1::OPERATION_STATE_SUCCEEDED);
    } else {
      operation.set_state(cancelled ? v1::OPERATION_STATE_CANCELLED : v1::OPERATION_STATE_FAILED);
      operation.mutable_error()->set_code(static_cast<int32_t>(status.code()));
      operation.mutable_error()->set_reason(ReasonOf(WithReason(status, "FAILED")));
      operation.mutable_error()->set_message(ValidUtf8(status.message(), kMaxMessageBytes));
    }
    if (operation.name().empty()) return status;
    if (status.ok()) {
      record->answer.reset(answer.New());
      record->answer->CopyFrom(answer);
    }
    ended_.push_back(record);
    Forget();
    event.set_type(v1::EVENT_TYPE_OPERATION_ENDED);
    event.set_operation(operation.name());
    event.set_message(absl::StrCat(
        KindText(operation.kind()), " ", operation.subject(), ": ",
        status.ok() ? "succeeded" : absl::StrCat(cancelled ? "cancelled: " : "failed: ", status.message())));
  }
  changed_.SignalAll();
  if (events_ != nullptr) events_->Publish(std::move(event));
  return status;
}

absl::StatusOr<Operations::Handle> Operations::Find(absl::string_view name) const {
  MutexLock lock(&mutex_);
  Forget();
  const auto found = named_.find(name);
  if (found == named_.end()) return MissingResource("operation", name);
  return Handle(found->second);
}

v1::Operation Operations::WaitForEnd(const Handle& handle, absl::Time deadline) const {
  MutexLock lock(&mutex_);
  while (handle->operation.state() == v1::OPERATION_STATE_RUNNING && absl::Now() < deadline) {
    changed_.WaitUntil(&mutex_, deadline);
  }
  return Describe(*handle);
}

absl::StatusOr<v1::Operation> Operations::Get(absl::string_view name) const {
  absl::StatusOr<Handle> handle = Find(name);
  if (!handle.ok()) return handle.status();
  return WaitForEnd(*handle, absl::InfinitePast());
}

std::vector<v1::Operation> Operations::ListPage(const Page& page) const {
  MutexLock lock(&mutex_);
  Forget();
  std::vector<v1::Operation> operations;
  for (auto one = named_.upper_bound(page.after); one != named_.end() && operations.size() < page.size;
       ++one) {
    operations.push_back(Describe(*one->second));
  }
  return operations;
}

absl::StatusOr<v1::Operation> Operations::Cancel(absl::string_view name) {
  MutexLock lock(&mutex_);
  Forget();
  const auto found = named_.find(name);
  if (found == named_.end()) return MissingResource("operation", name);
  if (found->second->operation.state() == v1::OPERATION_STATE_RUNNING) found->second->progress.Cancel();
  return Describe(*found->second);
}

void Operations::Close() {
  {
    MutexLock lock(&mutex_);
    closed_ = true;
    for (const std::shared_ptr<Record>& record : running_) record->progress.Cancel();
  }
  changed_.SignalAll();
}

v1::Operation Operations::Describe(const Record& record) const {
  v1::Operation operation = record.operation;
  const bool running = operation.state() == v1::OPERATION_STATE_RUNNING;
  operation.set_done(record.progress.done());
  operation.set_total(record.progress.total());
  operation.set_cancel_requested(record.progress.cancel_requested());
  *operation.mutable_update_time() = ToTimestamp(running ? absl::Now() : record.end_time);
  return operation;
}

void Operations::Forget() const {
  const absl::Time oldest = absl::Now() - options_.keep;
  while (!ended_.empty() && (ended_.size() > options_.max_kept || ended_.front()->end_time <= oldest)) {
    named_.erase(ended_.front()->operation.name());
    ended_.pop_front();
  }
}

}  // namespace berth::control
