// Reading from a device on an ordinary thread, for what has to be known before an image is open.
#ifndef BERTH_IMAGE_QCOW2_METADATA_READER_H_
#define BERTH_IMAGE_QCOW2_METADATA_READER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "image/block/block_device.h"

namespace berth::qcow2 {

// Fills `out`, which lies inside the device and is not empty. Blocks; any thread but a reactor's.
absl::Status ReadMetadata(BlockDevice& device, uint64_t offset, absl::Span<uint8_t> out);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_METADATA_READER_H_
