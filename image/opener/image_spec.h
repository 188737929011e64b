// What an image is opened from.
#ifndef BERTH_IMAGE_OPENER_IMAGE_SPEC_H_
#define BERTH_IMAGE_OPENER_IMAGE_SPEC_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "image/block/image_modes.h"
#include "image/filter/rate_limiter.h"
#include "image/secret/secret.h"

namespace berth {

enum class ImageFormat : uint8_t { kRaw, kMemory, kNull, kQcow2, kLuks };

// "raw", "qcow2", "luks", "memory" or "null"; INVALID_ARGUMENT names these for anything else. A format is
// never guessed.
absl::StatusOr<ImageFormat> ParseImageFormat(absl::string_view name);
absl::string_view ImageFormatName(ImageFormat format);

struct ImageSpec {
  ImageFormat format = ImageFormat::kRaw;
  // Of a raw, qcow2 or luks image. Must be empty for the others.
  std::string path = {};
  // Of a memory or null image, in bytes. Must be 0 for the others.
  uint64_t size = 0;
  CacheMode cache = CacheMode::kWriteback;
  DiscardMode discard = DiscardMode::kUnmap;
  LockMode lock = LockMode::kExclusive;
  bool read_only = false;
  // The part that is shown, in bytes; a length of 0 means up to the end.
  uint64_t offset = 0;
  uint64_t length = 0;
  // All zero: no limit, and no filter for one. Whoever wants to change limits later makes the filter.
  RateLimits rate_limits = {};
  // Of a qcow2 image: the internal snapshot to show, by its id or else its name. Empty: the disk.
  std::string snapshot = {};
  // Of backing files whose format (raw or qcow2) the image above them does not state.
  std::optional<ImageFormat> backing_format = {};
  // Of a luks image, and of a qcow2 image that is encrypted: opens every encrypted image of the chain.
  Secret secret = {};
};

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_IMAGE_SPEC_H_
