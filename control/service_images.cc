#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "berth/v1/images.grpc.pb.h"
#include "control/call.h"
#include "control/image_error.h"
#include "control/name_turns.h"
#include "control/operations.h"
#include "control/services.h"
#include "control/status_details.h"
#include "control/validation.h"
#include "image/io/progress.h"
#include "image/opener/image_files.h"

namespace berth::control {
namespace {

// One that waits for its turn and is cancelled notices it after this long.
constexpr absl::Duration kCancellationCheck = absl::Milliseconds(100);

absl::Status CheckFile(absl::string_view path, v1::ImageFormat format) {
  if (absl::Status status = CheckImagePath("path", path); !status.ok()) return status;
  if (format == v1::IMAGE_FORMAT_RAW) return absl::OkStatus();
  if (format == v1::IMAGE_FORMAT_UNSPECIFIED) {
    return InvalidField("format", "name the format: RAW; it is never guessed");
  }
  return InvalidField(
      "format",
      absl::StrCat(v1::ImageFormat_IsValid(format) ? v1::ImageFormat_Name(format) : absl::StrCat(format),
                   " images cannot be made, looked at or resized here; RAW ones can"));
}

class ImageServer final : public v1::ImageService::Service {
 public:
  explicit ImageServer(const ServiceEnvironment& environment) : environment_(environment) {}

  grpc::Status CreateImage(grpc::ServerContext* context, const v1::CreateImageRequest* request,
                           v1::ImageInfo* answer) override {
    absl::Status status = CheckFile(request->path(), request->format());
    if (status.ok()) status = CheckSize("size_bytes", request->size_bytes());
    if (status.ok() && !request->operation_name().empty()) {
      status = CheckName("operation_name", request->operation_name());
    }
    if (!status.ok()) return ToGrpcStatus(status);
    const auto work = [this, request, answer](Progress& progress) {
      return Create(*request, progress, answer);
    };
    if (!request->preallocate() && request->operation_name().empty()) {
      Progress unseen;
      return ToGrpcStatus(work(unseen));
    }
    Operations::Call call;
    call.name = request->operation_name();
    call.kind = v1::OPERATION_KIND_CREATE_IMAGE;
    call.subject = request->path();
    call.unit = v1::OPERATION_UNIT_BYTES;
    call.request = request;
    call.abandoned = [context] { return context->IsCancelled(); };
    return ToGrpcStatus(environment_.operations->Run(call, work, answer));
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
  absl::Status Create(const v1::CreateImageRequest& request, Progress& progress, v1::ImageInfo* answer) {
    // Two that set space aside for one new file would take twice as much of the disk.
    absl::StatusOr<NameTurns::Turn> turn = TakeTurn(request, progress);
    if (!turn.ok()) return turn.status();
    return Describe(request.path(),
                    CreateRawImage(*environment_.roots, request.path(), request.size_bytes(),
                                   request.preallocate(), &progress),
                    answer);
  }

  absl::StatusOr<NameTurns::Turn> TakeTurn(const v1::CreateImageRequest& request, const Progress& progress) {
    if (!request.preallocate()) return NameTurns::Turn();
    while (!progress.cancelled()) {
      absl::StatusOr<NameTurns::Turn> turn = turns_.Take(request.path(), absl::Now() + kCancellationCheck);
      if (!absl::IsDeadlineExceeded(turn.status())) return turn;
    }
    return absl::CancelledError(absl::StrCat("cancelled while another operation sets ",
                                             Quoted(request.path()), " aside; nothing was done"));
  }

  static absl::Status Describe(const std::string& path, const absl::StatusOr<ImageFileInfo>& file,
                               v1::ImageInfo* answer) {
    if (!file.ok()) return DescribeImageError(file.status(), path, "path");
    answer->set_path(path);
    answer->set_format(v1::IMAGE_FORMAT_RAW);
    answer->set_size_bytes(file->size);
    answer->set_allocated_bytes(file->allocated);
    answer->set_in_use(file->in_use);
    return absl::OkStatus();
  }

  static grpc::Status Answer(const std::string& path, const absl::StatusOr<ImageFileInfo>& file,
                             v1::ImageInfo* answer) {
    return ToGrpcStatus(Describe(path, file, answer));
  }

  const ServiceEnvironment& environment_;
  NameTurns turns_{"image"};  // Of those that preallocate.
};

}  // namespace

std::unique_ptr<grpc::Service> MakeImageService(const ServiceEnvironment& environment) {
  return std::make_unique<ImageServer>(environment);
}

}  // namespace berth::control
