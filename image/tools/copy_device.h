// CopyDevice: what one device reads goes to another, sparsely and with several requests under way.
#ifndef BERTH_IMAGE_TOOLS_COPY_DEVICE_H_
#define BERTH_IMAGE_TOOLS_COPY_DEVICE_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "image/block/block_device.h"
#include "image/io/progress.h"
#include "image/io/reactor.h"

namespace berth {

struct CopyOptions {
  // Pieces under way at once, and the most bytes of each: together the memory that the copy takes.
  size_t pieces = 16;
  size_t piece_bytes = size_t{1} << 20;
  // The target reads as zeroes now, as a new image does: zeroes need not be written.
  bool target_is_zero = false;
  // Data is looked through for zeroes in blocks of this many bytes, a power of two of at least 512; 0: what
  // the source calls data is written as data.
  size_t zero_block_bytes = 4096;
};

// Copies all of `source` to `target`, which is at least as large; what `target` has beyond that is zeroed.
// Flushed when this returns OK.
//
// `progress` counts bytes of data, not of holes: that is what takes the time. The sum is known before the
// first of them is copied.
//
// INVALID_ARGUMENT for a target that is too small, CANCELLED, RESOURCE_EXHAUSTED where the target's disk is
// full, else the errno's code; the text says which side failed, where and why. After an error the target
// holds part of the source.
//
// Blocks; for an ordinary thread. The work is done on `reactor`. Nobody writes to either device meanwhile.
absl::Status CopyDevice(BlockDevice& source, BlockDevice& target, Reactor& reactor,
                        const CopyOptions& options, Progress& progress);

}  // namespace berth

#endif  // BERTH_IMAGE_TOOLS_COPY_DEVICE_H_
