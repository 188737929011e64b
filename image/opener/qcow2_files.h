// Making, looking at and resizing qcow2 image files that nobody has open through us. For the ImageService.
//
// Thread-safe. All of it may block.
#ifndef BERTH_IMAGE_OPENER_QCOW2_FILES_H_
#define BERTH_IMAGE_OPENER_QCOW2_FILES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/io/progress.h"
#include "image/opener/image_file_info.h"
#include "image/opener/image_roots.h"
#include "image/opener/image_spec.h"
#include "image/qcow2/format/bitmap_directory.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/format/new_image.h"
#include "image/qcow2/format/snapshot_table.h"

namespace berth {

enum class Preallocation : uint8_t { kOff, kMetadata, kFalloc, kFull };

// Makes the image at `path`, and before it the data file where the options name one. Names in the options
// stand in the image as they are, mean what they would mean when it is opened, and are bound to the roots as
// then. A size of 0 is that of the backing file. An image appears whole and durable, or not at all; a data
// file may be left behind by a crash just before that, and is taken when the call is repeated. An image that
// is there with the same options is a success that changes nothing.
//
// `progress`, which may be null, counts the bytes that are set aside. CANCELLED leaves no new file.
// INVALID_ARGUMENT for options that cannot be, ALREADY_EXISTS for something else at `path` or a data file
// with data, and errors as CreateRawImage(); for a backing file as OpenImage().
absl::StatusOr<ImageFileInfo> CreateQcow2Image(const ImageRoots& roots, const std::string& path,
                                               qcow2::NewImageOptions options, Preallocation preallocation,
                                               Progress* progress = nullptr);

struct Qcow2Details {
  qcow2::Header header;
  // What the names in the header mean; empty where there are none, or where they mean no file.
  std::string full_backing_file;
  std::string full_data_file;
  std::vector<qcow2::Snapshot> snapshots;
  std::vector<qcow2::BitmapEntry> bitmaps;  // None where a writer left them behind that does not know them.
};

struct InspectedImage {
  std::string path;
  ImageFormat format = ImageFormat::kRaw;
  ImageFileInfo file;  // Its size is the disk's.
  std::optional<Qcow2Details> qcow2;
};

// Looks at the qcow2 image at `path` and, with `chain`, at those below it; from the top down. Works on images
// in use. Errors as OpenImage(), but an image is not refused for what only its use needs, such as a key.
absl::StatusOr<std::vector<InspectedImage>> InspectQcow2Image(const ImageRoots& roots,
                                                              const std::string& path,
                                                              std::optional<ImageFormat> backing_format,
                                                              bool chain);

// FAILED_PRECONDITION for an image in use (reason IMAGE_LOCKED) and for a smaller size unless `allow_shrink`
// (reason WOULD_SHRINK); else as OpenImage() and Qcow2Device::Resize(). The new size is durable when this
// returns.
absl::StatusOr<ImageFileInfo> ResizeQcow2Image(const ImageRoots& roots, const std::string& path,
                                               uint64_t size, bool allow_shrink,
                                               std::optional<ImageFormat> backing_format);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_QCOW2_FILES_H_
