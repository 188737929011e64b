#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "berth/v1/image_tools.grpc.pb.h"
#include "control/call.h"
#include "control/image_work.h"
#include "control/operations.h"
#include "control/services.h"
#include "control/status_details.h"
#include "control/validation.h"
#include "image/io/progress.h"

namespace berth::control {
namespace {

constexpr uint32_t kDefaultPage = 1024;
constexpr uint32_t kLargestPage = 8192;
constexpr uint32_t kSmallestBlock = 512;
constexpr uint32_t kLargestBlock = 1 << 20;

absl::Status CheckOperationName(const std::string& name) {
  return name.empty() ? absl::OkStatus() : CheckName("operation_name", name);
}

absl::Status CheckCheck(const v1::CheckImageRequest& request) {
  if (absl::Status status = CheckImagePath("path", request.path()); !status.ok()) return status;
  if (request.format() != v1::IMAGE_FORMAT_QCOW2) {
    return InvalidField("format", "QCOW2 images can be checked; others have nothing that could be wrong");
  }
  if (!v1::ImageRepair_IsValid(request.repair())) {
    return InvalidField("repair", absl::StrCat(request.repair(), " is none of NONE, LEAKS and ALL"));
  }
  return CheckOperationName(request.operation_name());
}

// `field` is that of the Image in the request.
absl::Status CheckSource(const std::string& field, const v1::Image& image) {
  // An operation keeps its request.
  if (image.secret().has_value()) {
    return InvalidField(absl::StrCat(field, ".secret"),
                        "give the secret in a file, of which `file` is the path");
  }
  v1::ExportSpec spec;
  *spec.mutable_image() = image;
  spec.set_read_only(true);
  return WithMovedField(CheckExportSpec(spec), "spec.image", field);
}

absl::Status CheckTarget(const v1::CreateImageRequest& target) {
  if (absl::Status status = CheckImagePath("target.path", target.path()); !status.ok()) return status;
  if (target.format() != v1::IMAGE_FORMAT_RAW && target.format() != v1::IMAGE_FORMAT_QCOW2) {
    return InvalidField("target.format", "name the format of the new image: RAW or QCOW2");
  }
  if (target.format() == v1::IMAGE_FORMAT_RAW && target.has_qcow2()) {
    return InvalidField("target.qcow2", "these are options of a QCOW2 image; leave them out");
  }
  if (!target.qcow2().backing_file().empty()) {
    return InvalidField("target.qcow2.backing_file", "the new image has all of the source; leave this empty");
  }
  if (!target.qcow2().data_file().empty()) {
    return InvalidField("target.qcow2.data_file",
                        "a converted image has its data in its own file; leave this empty");
  }
  if (!target.operation_name().empty()) {
    return InvalidField("target.operation_name", "name the whole operation instead, in operation_name");
  }
  return target.size_bytes() == 0 ? absl::OkStatus() : CheckSize("target.size_bytes", target.size_bytes());
}

absl::Status CheckConvert(const v1::ConvertImageRequest& request) {
  absl::Status status = CheckSource("source", request.source());
  if (status.ok()) status = CheckTarget(request.target());
  if (!status.ok()) return status;
  const uint32_t block = request.sparse_bytes();
  if (block != 0 && (block < kSmallestBlock || block > kLargestBlock || (block & (block - 1)) != 0)) {
    return InvalidField("sparse_bytes", absl::StrCat(block, " is no power of two from ", kSmallestBlock,
                                                     " to ", kLargestBlock));
  }
  return CheckOperationName(request.operation_name());
}

absl::Status CheckMap(const v1::MapImageRequest& request) {
  if (absl::Status status = CheckSource("image", request.image()); !status.ok()) return status;
  if (request.page_size() > kLargestPage) {
    return InvalidField("page_size",
                        absl::StrCat(request.page_size(), " is more than the ", kLargestPage, " possible"));
  }
  return absl::OkStatus();
}

class ImageToolServer final : public v1::ImageToolService::Service {
 public:
  explicit ImageToolServer(const ServiceEnvironment& environment) : environment_(environment) {}

  grpc::Status CheckImage(grpc::ServerContext* context, const v1::CheckImageRequest* request,
                          v1::CheckImageResponse* answer) override {
    if (absl::Status status = CheckCheck(*request); !status.ok()) return ToGrpcStatus(status);
    return Run(
        context, request->operation_name(), v1::OPERATION_KIND_CHECK_IMAGE, request->path(), *request,
        [&](Progress& progress) { return CheckImageFile(*environment_.roots, *request, progress, answer); },
        answer);
  }

  grpc::Status ConvertImage(grpc::ServerContext* context, const v1::ConvertImageRequest* request,
                            v1::ImageInfo* answer) override {
    if (absl::Status status = CheckConvert(*request); !status.ok()) return ToGrpcStatus(status);
    return Run(
        context, request->operation_name(), v1::OPERATION_KIND_CONVERT_IMAGE, request->target().path(),
        *request,
        [&](Progress& progress) {
          return ConvertImageFile(*environment_.roots, *environment_.secret_roots, *request, progress,
                                  answer);
        },
        answer);
  }

  grpc::Status MapImage(grpc::ServerContext*, const v1::MapImageRequest* request,
                        v1::MapImageResponse* answer) override {
    if (absl::Status status = CheckMap(*request); !status.ok()) return ToGrpcStatus(status);
    const uint32_t page = request->page_size() == 0 ? kDefaultPage : request->page_size();
    return ToGrpcStatus(
        MapImageFile(*environment_.roots, *environment_.secret_roots, *request, page, answer));
  }

 private:
  template <typename Answer>
  grpc::Status Run(grpc::ServerContext* context, const std::string& name, v1::OperationKind kind,
                   const std::string& subject, const google::protobuf::Message& request,
                   absl::FunctionRef<absl::Status(Progress&)> work, Answer* answer) {
    Operations::Call call;
    call.name = name;
    call.kind = kind;
    call.subject = subject;
    call.unit = v1::OPERATION_UNIT_BYTES;
    call.request = &request;
    call.abandoned = [context] { return context->IsCancelled(); };
    return ToGrpcStatus(environment_.operations->Run(call, work, answer));
  }

  const ServiceEnvironment& environment_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeImageToolService(const ServiceEnvironment& environment) {
  return std::make_unique<ImageToolServer>(environment);
}

}  // namespace berth::control
