#include "image/opener/opener.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "image/filter/rate_limit.h"
#include "image/filter/read_only.h"
#include "image/filter/slice.h"
#include "image/luks/luks_image.h"
#include "image/memory/memory_device.h"
#include "image/null/null_device.h"
#include "image/opener/qcow2_chain.h"
#include "image/raw/raw_device.h"

namespace berth {
namespace {

absl::StatusOr<std::shared_ptr<BlockDevice>> OpenFile(const ImageSpec& spec, const ImageRoots& roots) {
  if (spec.size != 0) {
    return absl::InvalidArgumentError(absl::StrCat("size_bytes is ", spec.size, "; the size of a ",
                                                   ImageFormatName(spec.format),
                                                   " image is that of its file"));
  }
  const RawOptions options = {spec.read_only, spec.cache, spec.discard, spec.lock};
  absl::StatusOr<UniqueFd> fd = roots.OpenFile(spec.path, RawDevice::OpenFlags(options));
  if (!fd.ok()) return fd.status();
  return RawDevice::Adopt(*std::move(fd), spec.path, options);
}

absl::Status CheckHasNoFile(const ImageSpec& spec) {
  if (!spec.path.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("path is \"", spec.path, "\"; a ", ImageFormatName(spec.format), " image has no file"));
  }
  if (spec.size == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("size_bytes is 0; a ", ImageFormatName(spec.format), " image needs a size"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<BlockDevice>> OpenFormat(const ImageSpec& spec, const ImageRoots& roots) {
  switch (spec.format) {
    case ImageFormat::kRaw:
      return OpenFile(spec, roots);
    case ImageFormat::kLuks: {
      absl::StatusOr<std::shared_ptr<BlockDevice>> file = OpenFile(spec, roots);
      if (!file.ok()) return file.status();
      return luks::OpenLuksImage(*std::move(file), spec.secret);
    }
    case ImageFormat::kQcow2:
      return OpenQcow2Chain(spec, roots);
    case ImageFormat::kMemory: {
      if (absl::Status status = CheckHasNoFile(spec); !status.ok()) return status;
      absl::StatusOr<std::unique_ptr<MemoryDevice>> device = MemoryDevice::Create(spec.size);
      if (!device.ok()) return device.status();
      return std::shared_ptr<BlockDevice>(*std::move(device));
    }
    case ImageFormat::kNull:
      if (absl::Status status = CheckHasNoFile(spec); !status.ok()) return status;
      return std::make_shared<NullDevice>(spec.size);
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown image format ", static_cast<int>(spec.format)));
}

}  // namespace

absl::StatusOr<std::shared_ptr<BlockDevice>> OpenImage(const ImageSpec& spec, const ImageRoots& roots) {
  if (spec.format != ImageFormat::kQcow2 && (!spec.snapshot.empty() || spec.backing_format.has_value())) {
    return absl::InvalidArgumentError(absl::StrCat(spec.snapshot.empty() ? "a backing format" : "a snapshot",
                                                   " is given; a ", ImageFormatName(spec.format),
                                                   " image has neither snapshots nor a backing file"));
  }
  if (!spec.secret.empty() && spec.format != ImageFormat::kLuks && spec.format != ImageFormat::kQcow2) {
    return absl::InvalidArgumentError(
        absl::StrCat("a secret is given; a ", ImageFormatName(spec.format), " image is never encrypted"));
  }
  absl::StatusOr<std::shared_ptr<BlockDevice>> opened = OpenFormat(spec, roots);
  if (!opened.ok()) return opened.status();
  std::shared_ptr<BlockDevice> device = *std::move(opened);
  if (spec.offset != 0 || spec.length != 0) {
    absl::StatusOr<std::unique_ptr<SliceDevice>> slice =
        SliceDevice::Create(std::move(device), spec.offset, spec.length);
    if (!slice.ok()) return slice.status();
    device = *std::move(slice);
  }
  if (spec.read_only && !device->traits().read_only) {
    device = std::make_shared<ReadOnlyDevice>(std::move(device));
  }
  if (spec.rate_limits != RateLimits{}) {
    device = std::make_shared<RateLimitDevice>(std::move(device), spec.rate_limits);
  }
  return device;
}

}  // namespace berth
