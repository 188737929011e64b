// Opening an image from its description: the format's device, and over it, where the description asks for
// them, a slice, read-only, and a rate limit.
//
// A new format is a folder beside raw/, a value of ImageFormat, and one arm in OpenFormat().
#ifndef BERTH_IMAGE_OPENER_OPENER_H_
#define BERTH_IMAGE_OPENER_OPENER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "image/block/block_device.h"
#include "image/block/image_modes.h"
#include "image/filter/rate_limiter.h"
#include "image/opener/image_roots.h"

namespace berth {

enum class ImageFormat : uint8_t { kRaw, kMemory, kNull };

// "raw", "memory" or "null"; INVALID_ARGUMENT names these for anything else. A format is never guessed.
absl::StatusOr<ImageFormat> ParseImageFormat(absl::string_view name);
absl::string_view ImageFormatName(ImageFormat format);

struct ImageSpec {
  ImageFormat format = ImageFormat::kRaw;
  // Of a raw image. Must be empty for the others.
  std::string path = {};
  // Of a memory or null image, in bytes. Must be 0 for raw.
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
};

// Opens what `spec` describes. INVALID_ARGUMENT for a spec that makes no sense, OUT_OF_RANGE for a slice that
// does not lie inside the image, PERMISSION_DENIED for a path outside `roots`, NOT_FOUND, and
// FAILED_PRECONDITION (reason IMAGE_LOCKED) for an image that somebody else holds. May block.
absl::StatusOr<std::shared_ptr<BlockDevice>> OpenImage(const ImageSpec& spec, const ImageRoots& roots);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_OPENER_H_
