// The size of a file, and the space that is set aside for it.
#ifndef BERTH_IMAGE_OPENER_DISK_SPACE_H_
#define BERTH_IMAGE_OPENER_DISK_SPACE_H_

#include <sys/types.h>

#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "image/io/progress.h"

namespace berth {

inline constexpr uint64_t kLargestFile = std::numeric_limits<off_t>::max();

// INVALID_ARGUMENT where an image at `path` cannot have `size` bytes.
absl::Status CheckImageSize(const std::string& path, uint64_t size);

// Gives the file `fd` its size. INVALID_ARGUMENT for one that its file system cannot hold. May block.
absl::Status SetFileSize(int fd, const std::string& path, uint64_t size);

// Sets aside the space of the whole file `fd`, whose bytes stay what they are; with `write_zeroes`, of a file
// that has no data, by writing them. `progress` counts the bytes and is asked before each piece. CANCELLED;
// RESOURCE_EXHAUSTED for a full disk, before anything is taken where that can be known. May block.
absl::Status SetSpaceAside(int fd, const std::string& path, uint64_t size, bool write_zeroes,
                           Progress& progress);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_DISK_SPACE_H_
