#include "image/opener/image_spec.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace berth {

absl::StatusOr<ImageFormat> ParseImageFormat(absl::string_view name) {
  for (const ImageFormat format : {ImageFormat::kRaw, ImageFormat::kQcow2, ImageFormat::kLuks,
                                   ImageFormat::kMemory, ImageFormat::kNull}) {
    if (name == ImageFormatName(format)) return format;
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown image format \"", name.substr(0, 64),
                                                 "\"; known are raw, qcow2, luks, memory and null"));
}

absl::string_view ImageFormatName(ImageFormat format) {
  switch (format) {
    case ImageFormat::kRaw:
      return "raw";
    case ImageFormat::kMemory:
      return "memory";
    case ImageFormat::kNull:
      return "null";
    case ImageFormat::kQcow2:
      return "qcow2";
    case ImageFormat::kLuks:
      return "luks";
  }
  return "unknown";
}

}  // namespace berth
