// Reading from a device on an ordinary thread, for what has to be known before an image is open.
#ifndef BERTH_IMAGE_QCOW2_METADATA_READER_H_
#define BERTH_IMAGE_QCOW2_METADATA_READER_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/io/io_result.h"
#include "image/io/reactor.h"
#include "image/io/task.h"

namespace berth::qcow2 {

// Fills `out`, which lies inside the device and is not empty. Blocks; any thread but a reactor's.
absl::Status ReadMetadata(BlockDevice& device, uint64_t offset, absl::Span<uint8_t> out);

// Writes `data` inside the device. Blocks; any thread but a reactor's.
absl::Status WriteUnflushed(BlockDevice& device, uint64_t offset, absl::Span<const uint8_t> data);
// What was written is on stable storage. Blocks; any thread but a reactor's.
absl::Status FlushFile(BlockDevice& device);
// Both.
absl::Status WriteMetadata(BlockDevice& device, uint64_t offset, absl::Span<const uint8_t> data);

// Calls `function` with a channel of the device, on its reactor, and waits for the end of its task.
absl::StatusOr<IoResult> RunOnFile(BlockDevice& device,
                                   absl::FunctionRef<Task<IoResult>(Reactor&, BlockChannel&)> function);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_METADATA_READER_H_
