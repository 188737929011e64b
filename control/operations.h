// Operations: the long work that runs, and what came of it.
//
// Work runs on the thread of the call that asked for it. Under a name it goes on when that call's client is
// gone; the same request under the same name joins it, or gets the answer that it had. proto/berth/v1/
// operations.proto says the rest.
//
// Thread-safe. Lifetime: outlives every call of Run() and every Handle's use; Close() makes these end.
#ifndef BERTH_CONTROL_OPERATIONS_H_
#define BERTH_CONTROL_OPERATIONS_H_

#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "berth/v1/operations.pb.h"
#include "control/event_hub.h"
#include "control/validation.h"
#include "control/watcher_slots.h"
#include "google/protobuf/message.h"
#include "image/io/mutex.h"
#include "image/io/progress.h"

namespace berth::control {

struct OperationsOptions {
  // At once, those without a name too; each keeps a thread.
  size_t max_running = 16;
  // Of those that have ended.
  size_t max_kept = 256;
  absl::Duration keep = absl::Hours(1);
};

class Operations {
 public:
  // `watchers` counts the calls that wait for another call's work. Both outlive this.
  Operations(const OperationsOptions& options, WatcherSlots* watchers, EventHub* events);
  ~Operations();

  // What a call asks for.
  struct Call {
    std::string name;  // Empty for work that ends with its call.
    v1::OperationKind kind = v1::OPERATION_KIND_UNSPECIFIED;
    std::string subject;
    v1::OperationUnit unit = v1::OPERATION_UNIT_UNSPECIFIED;
    // What must be the same for a call to join.
    const google::protobuf::Message* request = nullptr;
    // Whether the client of this call is gone. Quick; called on threads that are in Run() for this call.
    std::function<bool()> abandoned;
  };

  // Does `work`, which fills `*answer`, or waits for the call that does it and copies its answer. The error
  // is that of the work. Beside it: ALREADY_EXISTS for a name that has another request, CANCELLED (reason
  // OPERATION_CANCELLED) for work that was cancelled, UNAVAILABLE (SERVER_STOPPING) after Close(),
  // RESOURCE_EXHAUSTED (LIMIT_REACHED).
  absl::Status Run(const Call& call, absl::FunctionRef<absl::Status(Progress&)> work,
                   google::protobuf::Message* answer);

  // An operation that was found; it stays valid when the operation is forgotten.
  struct Record;
  using Handle = std::shared_ptr<const Record>;
  // NOT_FOUND.
  absl::StatusOr<Handle> Find(absl::string_view name) const;
  // What it is when it ends, or at `deadline`.
  v1::Operation WaitForEnd(const Handle& handle, absl::Time deadline) const;

  absl::StatusOr<v1::Operation> Get(absl::string_view name) const;
  // In the order of names.
  std::vector<v1::Operation> ListPage(const Page& page) const;
  // Asks the work to stop. OK for one that has ended; NOT_FOUND.
  absl::StatusOr<v1::Operation> Cancel(absl::string_view name);

  // Cancels everything, and lets nothing begin. Waits for nothing; calls that joined return at once.
  void Close();

 private:
  struct NameOrder {
    using is_transparent = void;
    bool operator()(absl::string_view a, absl::string_view b) const { return a < b; }
  };

  absl::StatusOr<std::shared_ptr<Record>> Begin(const Call& call, bool* joined);
  absl::Status Join(const Call& call, const Record& record, google::protobuf::Message* answer) const;
  absl::Status End(const std::shared_ptr<Record>& record, absl::Status status,
                   const google::protobuf::Message& answer);
  v1::Operation Describe(const Record& record) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Forget() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const OperationsOptions options_;
  WatcherSlots* const watchers_;
  EventHub* const events_;
  mutable Mutex mutex_;
  mutable CondVar changed_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<std::shared_ptr<Record>> running_ ABSL_GUARDED_BY(mutex_);
  // Those with names; looking forgets what is too old.
  mutable std::map<std::string, std::shared_ptr<Record>, NameOrder> named_ ABSL_GUARDED_BY(mutex_);
  mutable std::deque<std::shared_ptr<Record>> ended_ ABSL_GUARDED_BY(mutex_);  // Named; the oldest first.
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_OPERATIONS_H_
