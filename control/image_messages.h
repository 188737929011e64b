// Images of image/opener, and what the API says of them.
//
// Pure; any thread.
#ifndef BERTH_CONTROL_IMAGE_MESSAGES_H_
#define BERTH_CONTROL_IMAGE_MESSAGES_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "berth/v1/images.pb.h"
#include "image/opener/image_file_info.h"
#include "image/opener/qcow2_files.h"

namespace berth::control {

// What a request for a QCOW2 image asks for. INVALID_ARGUMENT names the field where an enumeration or a
// string has no meaning; what options cannot stand together is CreateQcow2Image()'s to say.
absl::StatusOr<qcow2::NewImageOptions> ToNewImageOptions(const v1::CreateImageRequest& request);
Preallocation ToPreallocation(const v1::CreateImageRequest& request);

// Nothing for IMAGE_FORMAT_UNSPECIFIED; `format` has passed CheckBackingFormat().
std::optional<ImageFormat> ToBackingFormat(v1::ImageFormat format);

void FillImageInfo(const std::string& path, v1::ImageFormat format, const ImageFileInfo& file,
                   v1::ImageInfo* answer);
void FillImageInfo(const InspectedImage& image, v1::ImageInfo* answer);

}  // namespace berth::control

#endif  // BERTH_CONTROL_IMAGE_MESSAGES_H_
