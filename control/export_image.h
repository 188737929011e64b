// ExportImage: the devices behind an export, from the format's up to the outermost filter.
#ifndef BERTH_CONTROL_EXPORT_IMAGE_H_
#define BERTH_CONTROL_EXPORT_IMAGE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "berth/v1/exports.pb.h"
#include "image/block/block_device.h"
#include "image/filter/rate_limit.h"
#include "image/opener/image_roots.h"
#include "image/secret/secret.h"

namespace berth::control {

struct ExportImage {
  // What clients see.
  std::shared_ptr<BlockDevice> device;
  // The filter in it whose limits may change.
  std::shared_ptr<RateLimitDevice> rate_limit;
};

// Opens what a spec that CheckExportSpec() accepted describes, with `secret` where it is encrypted. Errors
// have the API's details. May block.
absl::StatusOr<ExportImage> OpenExportImage(const v1::ExportSpec& spec, const Secret& secret,
                                            const ImageRoots& roots);

RateLimits ToRateLimits(const v1::RateLimit& limit);

}  // namespace berth::control

#endif  // BERTH_CONTROL_EXPORT_IMAGE_H_
