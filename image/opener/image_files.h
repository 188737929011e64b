// Making, looking at and resizing raw image files that nobody has open through us. For the ImageService.
//
// Thread-safe. All of it may block.
#ifndef BERTH_IMAGE_OPENER_IMAGE_FILES_H_
#define BERTH_IMAGE_OPENER_IMAGE_FILES_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/io/progress.h"
#include "image/opener/image_file_info.h"
#include "image/opener/image_roots.h"

namespace berth {

// Makes a file of `size` bytes that reads as zeroes, mode 0600. With `preallocate` its space is set aside
// now. It appears whole and durable, or not at all, so the call may be repeated after a crash at any point:
// the same size again is a success that changes nothing (with `preallocate` the space is set aside then).
//
// `progress`, which may be null, counts the bytes that were set aside. CANCELLED where it was cancelled
// before the last of them: no new file is there then, and one that was there before has its size and content;
// what was set aside of that stays so, as somebody may have written to it meanwhile.
//
// INVALID_ARGUMENT for a size of 0 or one that the file system cannot hold, ALREADY_EXISTS for something else
// under that name, PERMISSION_DENIED outside the roots, NOT_FOUND for a missing directory, RESOURCE_EXHAUSTED
// for a full disk.
absl::StatusOr<ImageFileInfo> CreateRawImage(const ImageRoots& roots, const std::string& path, uint64_t size,
                                             bool preallocate, Progress* progress = nullptr);

// Works on an image that is in use. Errors as ImageRoots::OpenFile.
absl::StatusOr<ImageFileInfo> InspectRawImage(const ImageRoots& roots, const std::string& path);

// FAILED_PRECONDITION for an image in use (reason IMAGE_LOCKED), for a block device, and for a smaller size
// unless `allow_shrink` (reason WOULD_SHRINK). The new size is durable when this returns.
absl::StatusOr<ImageFileInfo> ResizeRawImage(const ImageRoots& roots, const std::string& path, uint64_t size,
                                             bool allow_shrink);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_IMAGE_FILES_H_
