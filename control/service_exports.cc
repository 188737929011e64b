#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "berth/v1/exports.grpc.pb.h"
#include "control/call.h"
#include "control/secret_field.h"
#include "control/services.h"
#include "control/status_details.h"
#include "control/validation.h"

namespace berth::control {
namespace {

constexpr absl::string_view kChangeable =
    "description, rate_limit, size_bytes, require_tls, allowed_clients, block_sizes, client_resize";

absl::Status CheckUpdate(const v1::UpdateExportRequest& request) {
  if (absl::Status status = CheckName("name", request.name()); !status.ok()) return status;
  if (request.update_mask().paths().empty()) {
    return InvalidField("update_mask", absl::StrCat("name what is to change: ", kChangeable));
  }
  for (const std::string& path : request.update_mask().paths()) {
    absl::Status status;
    if (path == "description") {
      status = CheckDescription(path, request.description());
    } else if (path == "rate_limit") {
      status = CheckRateLimit(path, request.rate_limit());
    } else if (path == "size_bytes") {
      status = CheckSize(path, request.size_bytes());
    } else if (path == "allowed_clients") {
      status = CheckAllowedClients(path, request.allowed_clients());
    } else if (path == "block_sizes") {
      status = CheckBlockSizes(path, request.block_sizes());
    } else if (path != "require_tls" && path != "client_resize") {
      // The latter is checked where the rest of the spec is known.
      status = InvalidField("update_mask",
                            absl::StrCat(Quoted(path), " cannot be changed; what can is ", kChangeable));
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

class ExportServer final : public v1::ExportService::Service {
 public:
  explicit ExportServer(const ServiceEnvironment& environment) : environment_(environment) {}

  grpc::Status CreateExport(grpc::ServerContext* context, const v1::CreateExportRequest* request,
                            v1::Export* answer) override {
    // gRPC's own message, which nobody reads after this call.
    const absl::Cleanup forget = [request] {
      ForgetValue(const_cast<v1::CreateExportRequest*>(request)->mutable_spec());
    };
    if (absl::Status status = CheckName("name", request->name()); !status.ok()) return ToGrpcStatus(status);
    if (absl::Status status = CheckExportSpec(request->spec()); !status.ok()) return ToGrpcStatus(status);
    return Reply(Complete(environment_.exports->Create(request->name(), request->spec(), Deadline(*context))),
                 answer);
  }

  grpc::Status GetExport(grpc::ServerContext*, const v1::GetExportRequest* request,
                         v1::Export* answer) override {
    if (absl::Status status = CheckName("name", request->name()); !status.ok()) return ToGrpcStatus(status);
    return Reply(Complete(environment_.exports->Get(request->name())), answer);
  }

  grpc::Status ListExports(grpc::ServerContext*, const v1::ListExportsRequest* request,
                           v1::ListExportsResponse* answer) override {
    absl::StatusOr<Page> page = ParsePage(request->page_size(), request->page_token());
    if (!page.ok()) return ToGrpcStatus(page.status());
    std::vector<v1::Export> exports = environment_.exports->ListPage(*page);
    if (exports.size() == page->size) answer->set_next_page_token(PageToken(exports.back().name()));
    const std::map<std::string, uint32_t> connections = environment_.attachments->CountConnections();
    for (v1::Export& item : exports) {
      AddConnections(connections, &item);
      *answer->add_exports() = std::move(item);
    }
    return grpc::Status::OK;
  }

  grpc::Status UpdateExport(grpc::ServerContext* context, const v1::UpdateExportRequest* request,
                            v1::Export* answer) override {
    if (absl::Status status = CheckUpdate(*request); !status.ok()) return ToGrpcStatus(status);
    return Reply(Complete(environment_.exports->Update(*request, Deadline(*context))), answer);
  }

  grpc::Status DeleteExport(grpc::ServerContext* context, const v1::DeleteExportRequest* request,
                            google::protobuf::Empty*) override {
    if (absl::Status status = CheckName("name", request->name()); !status.ok()) return ToGrpcStatus(status);
    return ToGrpcStatus(
        environment_.exports->Delete(*request, Deadline(*context), environment_.disconnect_clients));
  }

 private:
  absl::Time Deadline(const grpc::ServerContext& context) const {
    return TurnDeadline(context, environment_.operation_timeout);
  }

  // An export's connections are those of network clients and those of its attachments.
  static void AddConnections(const std::map<std::string, uint32_t>& connections, v1::Export* item) {
    const auto found = connections.find(item->name());
    if (found != connections.end()) item->set_connections(item->connections() + found->second);
  }

  absl::StatusOr<v1::Export> Complete(absl::StatusOr<v1::Export> item) const {
    if (item.ok()) AddConnections(environment_.attachments->CountConnections(), &*item);
    return item;
  }

  const ServiceEnvironment& environment_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeExportService(const ServiceEnvironment& environment) {
  return std::make_unique<ExportServer>(environment);
}

}  // namespace berth::control
