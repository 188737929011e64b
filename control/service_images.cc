#include "absl/strings/str_cat.h"
#include "berth/v1/images.grpc.pb.h"
#include "control/call.h"
#include "control/image_error.h"
#include "control/services.h"
#include "control/status_details.h"
#include "control/validation.h"
#include "image/opener/image_files.h"

namespace berth::control {
namespace {

absl::Status CheckFile(absl::string_view path, v1::ImageFormat format) {
  if (absl::Status status = CheckImagePath("path", path); !status.ok()) return status;
  if (format == v1::IMAGE_FORMAT_RAW) return absl::OkStatus();
  if (format == v1::IMAGE_FORMAT_UNSPECIFIED) {
    return InvalidField("format", "name the format: RAW; it is never guessed");
  }
  return InvalidField("format", absl::StrCat(v1::ImageFormat_IsValid(format) ? v1::ImageFormat_Name(format)
                                                                             : absl::StrCat(format),
                                             " is no format of a file; RAW is"));
}

class ImageServer final : public v1::ImageService::Service {
 public:
  explicit ImageServer(const ServiceEnvironment& environment) : environment_(environment) {}

  grpc::Status CreateImage(grpc::ServerContext*, const v1::CreateImageRequest* request,
                           v1::ImageInfo* answer) override {
    absl::Status status = CheckFile(request->path(), request->format());
    if (status.ok()) status = CheckSize("size_bytes", request->size_bytes());
    if (!status.ok()) return ToGrpcStatus(status);
    return Answer(
        request->path(),
        CreateRawImage(*environment_.roots, request->path(), request->size_bytes(), request->preallocate()),
        answer);
  }

  grpc::Status InspectImage(grpc::ServerContext*, const v1::InspectImageRequest* request,
                            v1::ImageInfo* answer) override {
    if (absl::Status status = CheckFile(request->path(), request->format()); !status.ok()) {
      return ToGrpcStatus(status);
    }
    return Answer(request->path(), InspectRawImage(*environment_.roots, request->path()), answer);
  }

  grpc::Status ResizeImage(grpc::ServerContext*, const v1::ResizeImageRequest* request,
                           v1::ImageInfo* answer) override {
    absl::Status status = CheckFile(request->path(), request->format());
    if (status.ok()) status = CheckSize("size_bytes", request->size_bytes());
    if (!status.ok()) return ToGrpcStatus(status);
    return Answer(
        request->path(),
        ResizeRawImage(*environment_.roots, request->path(), request->size_bytes(), request->allow_shrink()),
        answer);
  }

 private:
  static grpc::Status Answer(const std::string& path, const absl::StatusOr<ImageFileInfo>& file,
                             v1::ImageInfo* answer) {
    if (!file.ok()) return ToGrpcStatus(DescribeImageError(file.status(), path, "path"));
    answer->set_path(path);
    answer->set_format(v1::IMAGE_FORMAT_RAW);
    answer->set_size_bytes(file->size);
    answer->set_allocated_bytes(file->allocated);
    answer->set_in_use(file->in_use);
    return grpc::Status::OK;
  }

  const ServiceEnvironment& environment_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeImageService(const ServiceEnvironment& environment) {
  return std::make_unique<ImageServer>(environment);
}

}  // namespace berth::control
