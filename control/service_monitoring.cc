#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "berth/v1/monitoring.grpc.pb.h"
#include "control/call.h"
#include "control/metrics/export_statistics.h"
#include "control/protobuf_time.h"
#include "control/services.h"
#include "control/status_details.h"
#include "control/validation.h"

namespace berth::control {
namespace {

// A watcher that hung up is noticed after this long.
constexpr absl::Duration kCancellationCheck = absl::Milliseconds(500);

class MonitoringServer final : public v1::MonitoringService::Service {
 public:
  explicit MonitoringServer(const ServiceEnvironment& environment) : environment_(environment) {}

  grpc::Status WatchEvents(grpc::ServerContext* context, const v1::WatchEventsRequest* request,
                           grpc::ServerWriter<v1::Event>* writer) override {
    EventHub& events = *environment_.events;
    const absl::StatusOr<WatcherSlots::Slot> slot = environment_.watchers->Take();
    if (!slot.ok()) return ToGrpcStatus(slot.status());
    uint64_t sequence = request->after_sequence();
    if (sequence == 0) {
      sequence = events.last_sequence();
    } else if (request->server_id() != events.server_id()) {
      return ToGrpcStatus(
          WithReason(absl::DataLossError(
                         "the server was started anew since that event; list everything anew, then watch "
                         "again from now on"),
                     "SERVER_RESTARTED"));
    }
    // The client sees that it is watching before anything happens.
    writer->SendInitialMetadata();
    while (!context->IsCancelled()) {
      absl::StatusOr<std::optional<v1::Event>> event =
          events.WaitForNext(sequence, absl::Now() + kCancellationCheck);
      if (absl::IsCancelled(event.status())) return grpc::Status::OK;
      if (!event.ok()) return ToGrpcStatus(event.status());
      if (!event->has_value()) continue;
      sequence = (*event)->sequence();
      if (!writer->Write(**event)) break;
    }
    return grpc::Status::CANCELLED;
  }

  grpc::Status GetStatistics(grpc::ServerContext*, const v1::GetStatisticsRequest* request,
                             v1::GetStatisticsResponse* answer) override {
    if (!request->export_().empty()) {
      if (absl::Status status = CheckName("export", request->export_()); !status.ok())
        return ToGrpcStatus(status);
    }
    const std::map<std::string, uint32_t> connections = environment_.attachments->CountConnections();
    *answer->mutable_time() = ToTimestamp(absl::Now());
    for (const ExportRegistry::Activity& activity : environment_.exports->ListActivity()) {
      if (!request->export_().empty() && activity.name != request->export_()) continue;
      v1::ExportStatistics* statistics = answer->add_exports();
      statistics->set_export_(activity.name);
      const auto attached = connections.find(activity.name);
      statistics->set_connections(activity.clients + (attached == connections.end() ? 0 : attached->second));
      if (activity.metrics != nullptr) FillStatistics(*activity.metrics, *statistics);
    }
    if (!request->export_().empty() && answer->exports().empty()) {
      return ToGrpcStatus(MissingResource("export", request->export_()));
    }
    return grpc::Status::OK;
  }

 private:
  const ServiceEnvironment& environment_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeMonitoringService(const ServiceEnvironment& environment) {
  return std::make_unique<MonitoringServer>(environment);
}

}  // namespace berth::control
