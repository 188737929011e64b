#include "control/image_work.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "control/export_image.h"
#include "control/image_error.h"
#include "control/image_messages.h"
#include "control/secret_field.h"
#include "control/status_details.h"
#include "image/block/extent.h"
#include "image/io/io_result.h"
#include "image/io/reactor_pool.h"
#include "image/io/task.h"
#include "image/opener/image_files.h"
#include "image/opener/opener.h"
#include "image/opener/partial_image.h"
#include "image/opener/qcow2_check.h"
#include "image/opener/qcow2_files.h"
#include "image/secret/secret.h"
#include "image/tools/copy_device.h"

namespace berth::control {
namespace {

// `field` is that of the Image in the request.
absl::StatusOr<std::shared_ptr<BlockDevice>> OpenSource(const ImageRoots& roots,
                                                        const ImageRoots& secret_roots,
                                                        const v1::Image& image, const std::string& field) {
  const absl::StatusOr<Secret> secret =
      ReadSecretField(absl::StrCat(field, ".secret"), image.secret(), secret_roots);
  if (!secret.ok()) return secret.status();
  v1::ExportSpec spec;
  *spec.mutable_image() = image;
  spec.set_read_only(true);
  absl::StatusOr<ExportImage> opened = OpenExportImage(spec, *secret, roots);
  if (!opened.ok()) return WithMovedField(opened.status(), "spec.image", field);
  return std::move(opened->device);
}

qcow2::Repair ToRepair(v1::ImageRepair repair) {
  switch (repair) {
    case v1::IMAGE_REPAIR_LEAKS:
      return qcow2::Repair::kLeaks;
    case v1::IMAGE_REPAIR_ALL:
      return qcow2::Repair::kAll;
    default:
      return qcow2::Repair::kNone;
  }
}

// Makes the empty image, under the name that it has while it is filled.
absl::Status Make(const ImageRoots& roots, v1::CreateImageRequest target, uint64_t size) {
  target.set_size_bytes(size);
  if (target.format() == v1::IMAGE_FORMAT_RAW) {
    return CreateRawImage(roots, target.path(), size, target.preallocate()).status();
  }
  // Sizes of qcow2 images are whole sectors; what is added reads as zeroes.
  target.set_size_bytes((size + 511) / 512 * 512);
  const absl::StatusOr<qcow2::NewImageOptions> options = ToNewImageOptions(target);
  if (!options.ok()) return WithMovedField(options.status(), "qcow2", "target.qcow2");
  return CreateQcow2Image(roots, target.path(), *options, ToPreallocation(target)).status();
}

absl::Status Fill(const ImageRoots& roots, const v1::CreateImageRequest& target, BlockDevice& source,
                  uint32_t block, Progress& progress) {
  ImageSpec spec;
  spec.format = target.format() == v1::IMAGE_FORMAT_RAW ? ImageFormat::kRaw : ImageFormat::kQcow2;
  spec.path = target.path();
  const absl::StatusOr<std::shared_ptr<BlockDevice>> device = OpenImage(spec, roots);
  if (!device.ok()) return device.status();
  absl::StatusOr<std::unique_ptr<ReactorPool>> reactors = ReactorPool::Create(1);
  if (!reactors.ok()) return reactors.status();
  CopyOptions options;
  options.target_is_zero = true;
  if (block != 0) options.zero_block_bytes = block;
  return CopyDevice(source, **device, (*reactors)->at(0), options, progress);
}

absl::Status Convert(const ImageRoots& roots, const v1::ConvertImageRequest& request, BlockDevice& source,
                     Progress& progress) {
  const uint64_t size = std::max(request.target().size_bytes(), source.size());
  absl::StatusOr<PartialImage> image = PartialImage::Begin(roots, request.target().path());
  if (!image.ok()) return image.status();
  v1::CreateImageRequest partial = request.target();
  partial.set_path(image->path());
  absl::Status status = Make(roots, partial, size);
  if (status.ok()) status = Fill(roots, partial, source, request.sparse_bytes(), progress);
  return status.ok() ? image->Publish() : status;
}

// What is at the target's path now.
absl::Status Describe(const ImageRoots& roots, const v1::CreateImageRequest& target, v1::ImageInfo* answer) {
  if (target.format() == v1::IMAGE_FORMAT_RAW) {
    const absl::StatusOr<ImageFileInfo> file = InspectRawImage(roots, target.path());
    if (!file.ok()) return file.status();
    FillImageInfo(target.path(), v1::IMAGE_FORMAT_RAW, *file, answer);
    return absl::OkStatus();
  }
  const absl::StatusOr<std::vector<InspectedImage>> images =
      InspectQcow2Image(roots, target.path(), std::nullopt, /*chain=*/false);
  if (!images.ok()) return images.status();
  FillImageInfo(images->front(), answer);
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckImageFile(const ImageRoots& roots, const v1::CheckImageRequest& request, Progress& progress,
                            v1::CheckImageResponse* answer) {
  absl::StatusOr<qcow2::CheckResult> result =
      CheckQcow2Image(roots, request.path(), ToRepair(request.repair()), progress);
  if (absl::IsCancelled(result.status())) return result.status();
  if (!result.ok()) return DescribeImageError(result.status(), request.path(), "path");
  answer->set_corruptions(result->corruptions);
  answer->set_leaks(result->leaks);
  answer->set_corruptions_fixed(result->corruptions_fixed);
  answer->set_leaks_fixed(result->leaks_fixed);
  answer->set_total_clusters(result->total_clusters);
  answer->set_allocated_clusters(result->allocated_clusters);
  answer->set_compressed_clusters(result->compressed_clusters);
  answer->set_fragmented_clusters(result->fragmented_clusters);
  answer->set_image_end_offset_bytes(result->image_end_offset);
  for (std::string& finding : result->findings) answer->add_findings(std::move(finding));
  return absl::OkStatus();
}

absl::Status ConvertImageFile(const ImageRoots& roots, const ImageRoots& secret_roots,
                              const v1::ConvertImageRequest& request, Progress& progress,
                              v1::ImageInfo* answer) {
  const absl::StatusOr<std::shared_ptr<BlockDevice>> source =
      OpenSource(roots, secret_roots, request.source(), "source");
  if (!source.ok()) return source.status();
  const uint64_t asked = request.target().size_bytes();
  if (asked != 0 && asked < (*source)->size()) {
    return InvalidField("target.size_bytes",
                        absl::StrCat(asked, " is less than the ", (*source)->size(), " bytes of the source"));
  }
  absl::Status status = Convert(roots, request, **source, progress);
  if (status.ok()) status = Describe(roots, request.target(), answer);
  // Cancellation, and what has its details already.
  if (status.ok() || absl::IsCancelled(status) || !ReasonOf(status).empty()) return status;
  return DescribeImageError(status, request.target().path(), "target.path");
}

absl::Status MapImageFile(const ImageRoots& roots, const ImageRoots& secret_roots,
                          const v1::MapImageRequest& request, uint32_t page, v1::MapImageResponse* answer) {
  const absl::StatusOr<std::shared_ptr<BlockDevice>> image =
      OpenSource(roots, secret_roots, request.image(), "image");
  if (!image.ok()) return image.status();
  const uint64_t size = (*image)->size();
  answer->set_size_bytes(size);
  uint64_t offset = request.offset_bytes();
  if (offset > size) {
    return InvalidField("offset_bytes", absl::StrCat(offset, " is behind the image's ", size, " bytes"));
  }
  const uint64_t left = size - offset;
  const uint64_t end = offset + (request.length_bytes() == 0 ? left : std::min(left, request.length_bytes()));
  absl::StatusOr<std::unique_ptr<ReactorPool>> reactors = ReactorPool::Create(1);
  if (!reactors.ok()) return reactors.status();
  std::vector<Extent> extents;
  const auto look = [&]() -> Task<absl::Status> {
    absl::StatusOr<std::unique_ptr<BlockChannel>> channel = (*image)->OpenChannel((*reactors)->at(0));
    if (!channel.ok()) co_return channel.status();
    uint64_t at = offset;
    while (at < end && extents.size() <= page) {
      std::vector<Extent> more;
      const IoResult result = co_await (*channel)->Extents(at, end - at, &more);
      if (!result.ok()) co_return absl::ErrnoToStatus(result.error, absl::StrCat("the extents at ", at));
      for (const Extent& extent : more) {
        AppendExtent(extent, &extents);
        at += extent.length;
      }
    }
    co_return absl::OkStatus();
  };
  if (absl::Status status = RunOn((*reactors)->at(0), look); !status.ok()) {
    return DescribeImageError(status, request.image().path(), "image.path");
  }
  for (size_t i = 0; i < std::min<size_t>(extents.size(), page); ++i) {
    v1::MappedExtent& extent = *answer->add_extents();
    extent.set_offset_bytes(offset);
    extent.set_length_bytes(extents[i].length);
    extent.set_allocated(extents[i].allocated);
    extent.set_zero(extents[i].zero);
    offset += extents[i].length;
  }
  if (offset < end) answer->set_next_offset_bytes(offset);
  return absl::OkStatus();
}

}  // namespace berth::control
