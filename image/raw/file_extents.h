// What a file system says about where a file has data, holes, and space that reads as zeroes.
//
// lseek(2) tells data from the rest, and knows of data that has not been written to the disk yet; where it
// sees no data, FIEMAP tells a hole from space that was set aside and never written (by fallocate(2), or by
// zeroing that keeps the space). Both may have to read from the disk: for threads that may block.
#ifndef BERTH_IMAGE_RAW_FILE_EXTENTS_H_
#define BERTH_IMAGE_RAW_FILE_EXTENTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "image/block/extent.h"

namespace berth {

// The most that one call of ReadFileExtents() finds.
inline constexpr size_t kMostFileExtents = 1024;

// Appends what is in the file from `offset` on, at least one extent, at least up to `stop` unless that takes
// too long; `size`, not less than `stop`, is where the image ends. A file system that cannot tell a hole from
// space set aside has it called a hole. Returns an errno.
int ReadFileExtents(int fd, uint64_t offset, uint64_t stop, uint64_t size, std::vector<Extent>* extents);

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_FILE_EXTENTS_H_
