// Making LUKS images, and looking at what their headers say. For the ImageService.
//
// Thread-safe. All of it may block.
#ifndef BERTH_IMAGE_OPENER_LUKS_FILES_H_
#define BERTH_IMAGE_OPENER_LUKS_FILES_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "image/luks/luks_header.h"
#include "image/luks/luks_image.h"
#include "image/opener/image_file_info.h"
#include "image/opener/image_roots.h"
#include "image/secret/secret.h"

namespace berth {

struct LuksFileInfo {
  ImageFileInfo file;  // Its size is that of the disk.
  luks::Header header;
};

// Makes an image whose disk has `size` bytes and reads as anything until it is written, mode 0600. It appears
// whole and durable, or not at all. The same size and a secret that opens it again is a success that changes
// nothing, whatever the options.
//
// INVALID_ARGUMENT for a size of 0 or no multiple of 512, else errors as luks::MakeHeader() and
// CreateRawImage().
absl::StatusOr<LuksFileInfo> CreateLuksImage(const ImageRoots& roots, const std::string& path, uint64_t size,
                                             const luks::CreateOptions& options, const Secret& secret);

// Works on an image that is in use, and needs no secret. Errors as ImageRoots::OpenFile() and
// luks::DecodeHeader().
absl::StatusOr<LuksFileInfo> InspectLuksImage(const ImageRoots& roots, const std::string& path);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_LUKS_FILES_H_
