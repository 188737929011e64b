// The gRPC services of berth.v1. Each checks its requests (validation.h) and hands them on; nothing here
// decides.
//
// A call goes on after its client's deadline and ends as it would have: the client sends it again and gets
// the answer. What a call waits for is bounded by `operation_timeout` at each step. Calls that can be long
// are operations (operations.h), which say themselves when they end.
#ifndef BERTH_CONTROL_SERVICES_H_
#define BERTH_CONTROL_SERVICES_H_

#include <grpcpp/impl/service_type.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "control/attachment_table.h"
#include "control/event_hub.h"
#include "control/export_registry.h"
#include "control/operations.h"
#include "control/watcher_slots.h"
#include "image/opener/image_roots.h"

namespace berth::control {

// What the services work with; all of it outlives them.
struct ServiceEnvironment {
  ExportRegistry* exports = nullptr;
  AttachmentTable* attachments = nullptr;
  EventHub* events = nullptr;
  const ImageRoots* roots = nullptr;
  // Where secrets may be read from.
  const ImageRoots* secret_roots = nullptr;
  Operations* operations = nullptr;
  // Streams of events and progress, and waits for operations.
  WatcherSlots* watchers = nullptr;
  // Ends the network clients of an export.
  std::function<void(const std::string& name)> disconnect_clients;
  absl::Duration operation_timeout = absl::Seconds(30);
};

std::unique_ptr<grpc::Service> MakeExportService(const ServiceEnvironment& environment);
std::unique_ptr<grpc::Service> MakeAttachmentService(const ServiceEnvironment& environment);
std::unique_ptr<grpc::Service> MakeImageService(const ServiceEnvironment& environment);
std::unique_ptr<grpc::Service> MakeImageToolService(const ServiceEnvironment& environment);
std::unique_ptr<grpc::Service> MakeMonitoringService(const ServiceEnvironment& environment);
std::unique_ptr<grpc::Service> MakeOperationService(const ServiceEnvironment& environment);

}  // namespace berth::control

#endif  // BERTH_CONTROL_SERVICES_H_
