#include <utility>
#include <vector>

#include "berth/v1/attachments.grpc.pb.h"
#include "control/call.h"
#include "control/services.h"
#include "control/validation.h"

namespace berth::control {
namespace {

class AttachmentServer final : public v1::AttachmentService::Service {
 public:
  explicit AttachmentServer(const ServiceEnvironment& environment) : environment_(environment) {}

  grpc::Status Attach(grpc::ServerContext* context, const v1::AttachRequest* request,
                      v1::Attachment* answer) override {
    if (absl::Status status = CheckName("name", request->name()); !status.ok()) return ToGrpcStatus(status);
    if (absl::Status status = CheckAttachmentSpec(request->spec()); !status.ok()) return ToGrpcStatus(status);
    return Reply(environment_.attachments->Attach(request->name(), request->spec(), Deadline(*context)),
                 answer);
  }

  grpc::Status Detach(grpc::ServerContext* context, const v1::DetachRequest* request,
                      google::protobuf::Empty*) override {
    if (absl::Status status = CheckName("name", request->name()); !status.ok()) return ToGrpcStatus(status);
    return ToGrpcStatus(environment_.attachments->Detach(*request, Deadline(*context)));
  }

  grpc::Status GetAttachment(grpc::ServerContext*, const v1::GetAttachmentRequest* request,
                             v1::Attachment* answer) override {
    if (absl::Status status = CheckName("name", request->name()); !status.ok()) return ToGrpcStatus(status);
    return Reply(environment_.attachments->Get(request->name()), answer);
  }

  grpc::Status ListAttachments(grpc::ServerContext*, const v1::ListAttachmentsRequest* request,
                               v1::ListAttachmentsResponse* answer) override {
    absl::StatusOr<Page> page = ParsePage(request->page_size(), request->page_token());
    if (!page.ok()) return ToGrpcStatus(page.status());
    std::vector<v1::Attachment> attachments = environment_.attachments->ListPage(*page);
    if (attachments.size() == page->size) answer->set_next_page_token(PageToken(attachments.back().name()));
    for (v1::Attachment& item : attachments) *answer->add_attachments() = std::move(item);
    return grpc::Status::OK;
  }

 private:
  absl::Time Deadline(const grpc::ServerContext& context) const {
    return TurnDeadline(context, environment_.operation_timeout);
  }

  const ServiceEnvironment& environment_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAttachmentService(const ServiceEnvironment& environment) {
  return std::make_unique<AttachmentServer>(environment);
}

}  // namespace berth::control
