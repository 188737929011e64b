// What a file says of an image without being opened as one.
#ifndef BERTH_IMAGE_OPENER_IMAGE_FILE_INFO_H_
#define BERTH_IMAGE_OPENER_IMAGE_FILE_INFO_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "image/io/file.h"
#include "image/opener/image_roots.h"

namespace berth {

struct ImageFileInfo {
  uint64_t size = 0;       // Bytes that a client sees.
  uint64_t allocated = 0;  // Bytes that it takes on the disk.
  bool in_use =
      false;  // Somebody has it open for writing and says so in qemu's way (image/raw/image_lock.h).
};

// Works on a file that is in use. May block.
absl::StatusOr<ImageFileInfo> InspectFile(const File& file);

// Errors as ImageRoots::OpenFile. `flags` are open(2)'s. May block.
absl::StatusOr<File> OpenRegular(const ImageRoots& roots, const std::string& path, int flags);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_IMAGE_FILE_INFO_H_
