#include <memory>
#include <string>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "berth/v1/images.grpc.pb.h"
#include "control/call.h"
#include "control/image_error.h"
#include "control/image_messages.h"
#include "control/name_turns.h"
#include "control/operations.h"
#include "control/protobuf_time.h"
#include "control/secret_field.h"
#include "control/services.h"
#include "control/status_details.h"
#include "control/validation.h"
#include "image/io/progress.h"
#include "image/opener/image_files.h"
#include "image/opener/luks_files.h"
#include "image/opener/qcow2_files.h"

namespace berth::control {
namespace {

// One that waits for its turn and is cancelled notices it after this long.
constexpr absl::Duration kCancellationCheck = absl::Milliseconds(100);

absl::Status CheckFile(absl::string_view path, v1::ImageFormat format) {
  if (absl::Status status = CheckImagePath("path", path); !status.ok()) return status;
  if (format == v1::IMAGE_FORMAT_RAW || format == v1::IMAGE_FORMAT_QCOW2 || format == v1::IMAGE_FORMAT_LUKS) {
    return absl::OkStatus();
  }
  if (format == v1::IMAGE_FORMAT_UNSPECIFIED) {
    return InvalidField("format", "name the format: RAW, QCOW2 or LUKS; it is never guessed");
  }
  return InvalidField(
      "format",
      absl::StrCat(v1::ImageFormat_IsValid(format) ? v1::ImageFormat_Name(format) : absl::StrCat(format),
                   " images cannot be made, looked at or resized here; RAW, QCOW2 and LUKS ones can"));
}

// What only a LUKS image has, and what it has not.
absl::Status CheckLuks(const v1::CreateImageRequest& request) {
  if (request.format() != v1::IMAGE_FORMAT_LUKS) {
    if (!request.has_secret() && !request.has_luks()) return absl::OkStatus();
    return InvalidField(request.has_secret() ? "secret" : "luks", "this is of a LUKS image; leave it out");
  }
  if (request.preallocate()) return InvalidField("preallocate", "a LUKS image is not preallocated");
  // An operation keeps its request for as long as it is remembered.
  if (!request.operation_name().empty()) {
    return InvalidField("operation_name", "a LUKS image is made at once; leave this empty");
  }
  return CheckSecret("secret", request.secret());
}

absl::Status CheckCreate(const v1::CreateImageRequest& request) {
  absl::Status status = CheckFile(request.path(), request.format());
  if (status.ok()) status = CheckLuks(request);
  if (status.ok() && request.format() != v1::IMAGE_FORMAT_QCOW2 && request.has_qcow2()) {
    status = InvalidField("qcow2", "these are options of a QCOW2 image; leave them out");
  }
  // Else the size is that of the backing file.
  if (status.ok() && (request.size_bytes() != 0 || request.qcow2().backing_file().empty())) {
    status = CheckSize("size_bytes", request.size_bytes());
  }
  if (status.ok() && !request.operation_name().empty()) {
    status = CheckName("operation_name", request.operation_name());
  }
  return status;
}

// Whether making the image can take long.
bool IsLong(const v1::CreateImageRequest& request) {
  if (request.format() != v1::IMAGE_FORMAT_QCOW2) return request.preallocate();
  return ToPreallocation(request) != Preallocation::kOff || request.qcow2().data_file_raw();
}

class ImageServer final : public v1::ImageService::Service {
 public:
  explicit ImageServer(const ServiceEnvironment& environment) : environment_(environment) {}

  grpc::Status CreateImage(grpc::ServerContext* context, const v1::CreateImageRequest* request,
                           v1::ImageInfo* answer) override {
    // gRPC's own message, which nobody reads after this call.
    const absl::Cleanup forget = [request] {
      if (request->has_secret()) {
        ForgetValue(const_cast<v1::CreateImageRequest*>(request)->mutable_secret());
      }
    };
    if (absl::Status status = CheckCreate(*request); !status.ok()) return ToGrpcStatus(status);
    const auto work = [this, request, answer](Progress& progress) {
      return Create(*request, progress, answer);
    };
    if (!IsLong(*request) && request->operation_name().empty()) {
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
    absl::Status status = CheckFile(request->path(), request->format());
    if (status.ok())
      status = CheckBackingFormat("backing_format", request->format(), request->backing_format());
    if (!status.ok()) return ToGrpcStatus(status);
    if (request->format() == v1::IMAGE_FORMAT_LUKS) {
      return ToGrpcStatus(
          DescribeLuks(request->path(), InspectLuksImage(*environment_.roots, request->path()), answer));
    }
    if (request->format() == v1::IMAGE_FORMAT_QCOW2) return ToGrpcStatus(InspectQcow2(*request, answer));
    return ToGrpcStatus(Describe(request->path(), v1::IMAGE_FORMAT_RAW,
                                 InspectRawImage(*environment_.roots, request->path()), answer));
  }

  grpc::Status ResizeImage(grpc::ServerContext*, const v1::ResizeImageRequest* request,
                           v1::ImageInfo* answer) override {
    absl::Status status = CheckFile(request->path(), request->format());
    if (status.ok())
      status = CheckBackingFormat("backing_format", request->format(), request->backing_format());
    if (status.ok()) status = CheckSize("size_bytes", request->size_bytes());
    if (status.ok() && request->format() == v1::IMAGE_FORMAT_LUKS) {
      status =
          InvalidField("format", "new space of a LUKS image has to be encrypted; export it, and resize that");
    }
    if (!status.ok()) return ToGrpcStatus(status);
    const absl::StatusOr<ImageFileInfo> file =
        request->format() == v1::IMAGE_FORMAT_QCOW2
            ? ResizeQcow2Image(*environment_.roots, request->path(), request->size_bytes(),
                               request->allow_shrink(), ToBackingFormat(request->backing_format()))
            : ResizeRawImage(*environment_.roots, request->path(), request->size_bytes(),
                             request->allow_shrink());
    return ToGrpcStatus(Describe(request->path(), request->format(), file, answer));
  }

 private:
  absl::Status Create(const v1::CreateImageRequest& request, Progress& progress, v1::ImageInfo* answer) {
    // Two that set space aside for one new file would take twice as much of the disk.
    absl::StatusOr<NameTurns::Turn> turn = TakeTurn(request, progress);
    if (!turn.ok()) return turn.status();
    if (request.format() == v1::IMAGE_FORMAT_LUKS) return CreateLuks(request, answer);
    if (request.format() == v1::IMAGE_FORMAT_QCOW2) return CreateQcow2(request, progress, answer);
    return Describe(request.path(), v1::IMAGE_FORMAT_RAW,
                    CreateRawImage(*environment_.roots, request.path(), request.size_bytes(),
                                   request.preallocate(), &progress),
                    answer);
  }

  absl::Status CreateQcow2(const v1::CreateImageRequest& request, Progress& progress, v1::ImageInfo* answer) {
    const absl::StatusOr<qcow2::NewImageOptions> options = ToNewImageOptions(request);
    if (!options.ok()) return options.status();
    const absl::StatusOr<ImageFileInfo> file =
        CreateQcow2Image(*environment_.roots, request.path(), *options, ToPreallocation(request), &progress);
    return Describe(request.path(), v1::IMAGE_FORMAT_QCOW2, file, answer, "qcow2");
  }

  absl::Status CreateLuks(const v1::CreateImageRequest& request, v1::ImageInfo* answer) {
    const absl::StatusOr<Secret> secret =
        ReadSecretField("secret", request.secret(), *environment_.secret_roots);
    if (!secret.ok()) return secret.status();
    const v1::LuksOptions& wanted = request.luks();
    luks::CreateOptions options;
    options.cipher_algorithm = wanted.cipher_algorithm();
    options.cipher_mode = wanted.cipher_mode();
    options.iv_generator = wanted.iv_generator();
    options.hash = wanted.hash();
    options.iteration_time = ToDuration(wanted.iteration_time());
    return DescribeLuks(
        request.path(),
        CreateLuksImage(*environment_.roots, request.path(), request.size_bytes(), options, *secret), answer,
        "luks");
  }

  static absl::Status DescribeLuks(const std::string& path, const absl::StatusOr<LuksFileInfo>& image,
                                   v1::ImageInfo* answer, absl::string_view field = "path") {
    if (!image.ok()) return DescribeImageError(image.status(), path, field);
    FillImageInfo(path, v1::IMAGE_FORMAT_LUKS, image->file, answer);
    const luks::Header& header = image->header;
    v1::LuksInfo* const info = answer->mutable_luks();
    info->set_cipher_name(header.cipher_name);
    info->set_cipher_mode(header.cipher_mode);
    info->set_hash(header.hash);
    info->set_key_bits(header.key_bytes * 8);
    info->set_uuid(header.uuid);
    info->set_payload_offset_bytes(header.payload_offset());
    for (size_t i = 0; i < header.slots.size(); ++i) {
      if (header.slots[i].active) info->add_active_key_slots(static_cast<uint32_t>(i));
    }
    return absl::OkStatus();
  }

  absl::Status InspectQcow2(const v1::InspectImageRequest& request, v1::ImageInfo* answer) {
    const absl::StatusOr<std::vector<InspectedImage>> images =
        InspectQcow2Image(*environment_.roots, request.path(), ToBackingFormat(request.backing_format()),
                          request.backing_chain());
    if (!images.ok()) return DescribeImageError(images.status(), request.path(), "path");
    FillImageInfo(images->front(), answer);
    for (size_t i = 1; i < images->size(); ++i) FillImageInfo((*images)[i], answer->add_backing_chain());
    return absl::OkStatus();
  }

  absl::StatusOr<NameTurns::Turn> TakeTurn(const v1::CreateImageRequest& request, const Progress& progress) {
    if (!IsLong(request)) return NameTurns::Turn();
    while (!progress.cancelled()) {
      absl::StatusOr<NameTurns::Turn> turn = turns_.Take(request.path(), absl::Now() + kCancellationCheck);
      if (!absl::IsDeadlineExceeded(turn.status())) return turn;
    }
    return absl::CancelledError(absl::StrCat("cancelled while another operation sets ",
                                             Quoted(request.path()), " aside; nothing was done"));
  }

  // `field` is what is wrong where the request was.
  static absl::Status Describe(const std::string& path, v1::ImageFormat format,
                               const absl::StatusOr<ImageFileInfo>& file, v1::ImageInfo* answer,
                               absl::string_view field = "path") {
    if (!file.ok()) return DescribeImageError(file.status(), path, field);
    FillImageInfo(path, format, *file, answer);
    return absl::OkStatus();
  }

  const ServiceEnvironment& environment_;
  NameTurns turns_{"image"};  // Of those that preallocate.
};

}  // namespace

std::unique_ptr<grpc::Service> MakeImageService(const ServiceEnvironment& environment) {
  return std::make_unique<ImageServer>(environment);
}

}  // namespace berth::control
