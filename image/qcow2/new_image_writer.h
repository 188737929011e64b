// Putting a new image into a file.
#ifndef BERTH_IMAGE_QCOW2_NEW_IMAGE_WRITER_H_
#define BERTH_IMAGE_QCOW2_NEW_IMAGE_WRITER_H_

#include "absl/status/status.h"
#include "image/block/block_device.h"
#include "image/io/progress.h"
#include "image/qcow2/format/new_image.h"

namespace berth::qcow2 {

// `file` can be resized and is empty, or reads as zeroes. It gets the image's size, everything but its first
// sector, a flush, the first sector, and a flush: until that is there it is no qcow2 image, and after that a
// whole one. What reads as zeroes is not written.
//
// `progress` is asked whether to go on; it counts nothing. CANCELLED, and errors of the file, leave a file
// that is of no use. Blocks; not on a reactor's thread.
absl::Status WriteNewImage(BlockDevice& file, const NewImage& image, const Progress& progress);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_NEW_IMAGE_WRITER_H_
