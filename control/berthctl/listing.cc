#include "control/berthctl/listing.h"

#include <memory>

#include "berth/v1/attachments.grpc.pb.h"
#include "berth/v1/exports.grpc.pb.h"
#include "berth/v1/operations.grpc.pb.h"
#include "control/berthctl/server.h"

namespace berth::berthctl {
namespace {

constexpr int kPageSize = 1000;

// Calls `list` for each page and merges the answers into `all`.
template <typename Request, typename Response, typename List>
ExitCode AllPages(Server& server, const char* what, const List& list, Response* all) {
  Request request;
  request.set_page_size(kPageSize);
  for (;;) {
    Response page;
    const ExitCode code =
        server.Call(what, [&](grpc::ClientContext* context) { return list(context, request, &page); });
    if (code != ExitCode::kSuccess) return code;
    const std::string next = page.next_page_token();
    page.clear_next_page_token();
    all->MergeFrom(page);
    if (next.empty()) return ExitCode::kSuccess;
    if (next == request.page_token()) {
      return server.Fail(what, grpc::Status(grpc::StatusCode::INTERNAL,
                                            "the server answers every page with the same next one"));
    }
    request.set_page_token(next);
  }
}

}  // namespace

ExitCode ListExports(Server& server, v1::ListExportsResponse* all) {
  const std::unique_ptr<v1::ExportService::StubInterface> stub = v1::ExportService::NewStub(server.channel());
  return AllPages<v1::ListExportsRequest>(
      server, "export list",
      [&](grpc::ClientContext* context, const v1::ListExportsRequest& request,
          v1::ListExportsResponse* page) { return stub->ListExports(context, request, page); },
      all);
}

ExitCode ListAttachments(Server& server, v1::ListAttachmentsResponse* all) {
  const std::unique_ptr<v1::AttachmentService::StubInterface> stub =
      v1::AttachmentService::NewStub(server.channel());
  return AllPages<v1::ListAttachmentsRequest>(
      server, "attachment list",
      [&](grpc::ClientContext* context, const v1::ListAttachmentsRequest& request,
          v1::ListAttachmentsResponse* page) { return stub->ListAttachments(context, request, page); },
      all);
}

ExitCode ListOperations(Server& server, v1::ListOperationsResponse* all) {
  const std::unique_ptr<v1::OperationService::StubInterface> stub =
      v1::OperationService::NewStub(server.channel());
  return AllPages<v1::ListOperationsRequest>(
      server, "operation list",
      [&](grpc::ClientContext* context, const v1::ListOperationsRequest& request,
          v1::ListOperationsResponse* page) { return stub->ListOperations(context, request, page); },
      all);
}

}  // namespace berth::berthctl
