#include "control/export_image.h"

#include <utility>

#include "control/image_error.h"
#include "image/opener/opener.h"

namespace berth::control {
namespace {

ImageFormat ToFormat(v1::ImageFormat format) {
  switch (format) {
    case v1::IMAGE_FORMAT_MEMORY:
      return ImageFormat::kMemory;
    case v1::IMAGE_FORMAT_NULL:
      return ImageFormat::kNull;
    case v1::IMAGE_FORMAT_QCOW2:
      return ImageFormat::kQcow2;
    case v1::IMAGE_FORMAT_LUKS:
      return ImageFormat::kLuks;
    default:
      return ImageFormat::kRaw;
  }
}

CacheMode ToCacheMode(v1::CacheMode mode) {
  switch (mode) {
    case v1::CACHE_MODE_WRITETHROUGH:
      return CacheMode::kWritethrough;
    case v1::CACHE_MODE_NONE:
      return CacheMode::kNone;
    case v1::CACHE_MODE_DIRECTSYNC:
      return CacheMode::kDirectsync;
    case v1::CACHE_MODE_UNSAFE:
      return CacheMode::kUnsafe;
    default:
      return CacheMode::kWriteback;
  }
}

// What of the spec the image did not fit.
absl::string_view FieldBehind(const absl::Status& status, ImageFormat format) {
  if (absl::IsOutOfRange(status)) return "spec.length_bytes";
  const bool has_file = format != ImageFormat::kMemory && format != ImageFormat::kNull;
  return has_file ? "spec.image.path" : "spec.image";
}

}  // namespace

RateLimits ToRateLimits(const v1::RateLimit& limit) {
  return {.operations_per_second = limit.operations_per_second(),
          .bytes_per_second = limit.bytes_per_second(),
          .burst_operations = limit.burst_operations(),
          .burst_bytes = limit.burst_bytes()};
}

absl::StatusOr<ExportImage> OpenExportImage(const v1::ExportSpec& spec, const Secret& secret,
                                            const ImageRoots& roots) {
  ImageSpec image;
  image.format = ToFormat(spec.image().format());
  image.path = spec.image().path();
  image.size = spec.image().size_bytes();
  image.cache = ToCacheMode(spec.image().cache());
  image.discard =
      spec.image().discard() == v1::DISCARD_MODE_IGNORE ? DiscardMode::kIgnore : DiscardMode::kUnmap;
  image.lock = spec.shared_writers() ? LockMode::kSharedWriter : LockMode::kExclusive;
  image.read_only = spec.read_only();
  image.offset = spec.offset_bytes();
  image.length = spec.length_bytes();
  image.snapshot = spec.image().snapshot();
  image.secret = secret;
  if (spec.image().backing_format() != v1::IMAGE_FORMAT_UNSPECIFIED) {
    image.backing_format = ToFormat(spec.image().backing_format());
  }
  absl::StatusOr<std::shared_ptr<BlockDevice>> opened = OpenImage(image, roots);
  if (!opened.ok()) {
    return DescribeImageError(opened.status(), image.path, FieldBehind(opened.status(), image.format));
  }
  // Always there, as a limit may come later; without one it costs a load for each operation.
  auto rate_limit = std::make_shared<RateLimitDevice>(*std::move(opened), ToRateLimits(spec.rate_limit()));
  return ExportImage{.device = rate_limit, .rate_limit = rate_limit};
}

}  // namespace berth::control
