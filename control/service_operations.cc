#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "berth/v1/operations.grpc.pb.h"
#include "control/call.h"
#include "control/services.h"
#include "control/validation.h"

namespace berth::control {
namespace {

// Between two answers of a watch; also how soon a watcher that hung up is noticed.
constexpr absl::Duration kWatchInterval = absl::Milliseconds(250);

bool HasChanged(const v1::Operation& before, const v1::Operation& now) {
  return before.state() != now.state() || before.done() != now.done() || before.total() != now.total() ||
         before.cancel_requested() != now.cancel_requested();
}

class OperationServer final : public v1::OperationService::Service {
 public:
  explicit OperationServer(const ServiceEnvironment& environment) : environment_(environment) {}

  grpc::Status GetOperation(grpc::ServerContext*, const v1::GetOperationRequest* request,
                            v1::Operation* answer) override {
    if (absl::Status status = CheckName("name", request->name()); !status.ok()) return ToGrpcStatus(status);
    return Reply(environment_.operations->Get(request->name()), answer);
  }

  grpc::Status ListOperations(grpc::ServerContext*, const v1::ListOperationsRequest* request,
                              v1::ListOperationsResponse* answer) override {
    absl::StatusOr<Page> page = ParsePage(request->page_size(), request->page_token());
    if (!page.ok()) return ToGrpcStatus(page.status());
    std::vector<v1::Operation> operations = environment_.operations->ListPage(*page);
    if (operations.size() == page->size) answer->set_next_page_token(PageToken(operations.back().name()));
    for (v1::Operation& item : operations) *answer->add_operations() = std::move(item);
    return grpc::Status::OK;
  }

  grpc::Status WatchOperation(grpc::ServerContext* context, const v1::WatchOperationRequest* request,
                              grpc::ServerWriter<v1::Operation>* writer) override {
    if (absl::Status status = CheckName("name", request->name()); !status.ok()) return ToGrpcStatus(status);
    const Operations& operations = *environment_.operations;
    const absl::StatusOr<WatcherSlots::Slot> slot = environment_.watchers->Take();
    if (!slot.ok()) return ToGrpcStatus(slot.status());
    const absl::StatusOr<Operations::Handle> handle = operations.Find(request->name());
    if (!handle.ok()) return ToGrpcStatus(handle.status());
    v1::Operation shown = operations.WaitForEnd(*handle, absl::InfinitePast());
    bool open = writer->Write(shown);
    while (open && shown.state() == v1::OPERATION_STATE_RUNNING) {
      if (context->IsCancelled()) return grpc::Status::CANCELLED;
      v1::Operation now = operations.WaitForEnd(*handle, absl::Now() + kWatchInterval);
      if (!HasChanged(shown, now)) continue;
      shown = std::move(now);
      open = writer->Write(shown);
    }
    return open ? grpc::Status::OK : grpc::Status::CANCELLED;
  }

  grpc::Status CancelOperation(grpc::ServerContext*, const v1::CancelOperationRequest* request,
                               v1::Operation* answer) override {
    if (absl::Status status = CheckName("name", request->name()); !status.ok()) return ToGrpcStatus(status);
    return Reply(environment_.operations->Cancel(request->name()), answer);
  }

 private:
  const ServiceEnvironment& environment_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeOperationService(const ServiceEnvironment& environment) {
  return std::make_unique<OperationServer>(environment);
}

}  // namespace berth::control
