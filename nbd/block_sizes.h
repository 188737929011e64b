// The size constraints of an export (proto.md, "Size constraints"), kept as they are told.
//
// Devices serve any request; constraints are what an export's owner wants of its clients. The default is none
// that a client has to know of. Pure functions; any thread.
#ifndef BERTH_NBD_BLOCK_SIZES_H_
#define BERTH_NBD_BLOCK_SIZES_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "image/block/block_device.h"
#include "image/block/extent.h"
#include "nbd/wire.h"

namespace berth::nbd {

struct BlockSizes {
  // Offsets and lengths are multiples of this, or the request is EINVAL. A power of two, at most 64 KiB.
  uint32_t minimum = 1;
  // A power of two, at least 512 and `minimum`. 0: as the device prefers.
  uint32_t preferred = 0;
  // Bytes that a read or write may carry, from 1 MiB to kMaxPayload.
  uint32_t maximum_payload = kMaxPayload;
  // A client that does not ask for constraints that are not the default is refused
  // (NBD_REP_ERR_BLOCK_SIZE_REQD). Otherwise it is served, and its requests are held against them all the
  // same.
  bool must_be_asked_for = false;

  // Whether a client that knows nothing of them may meet one.
  bool constraining() const { return minimum > 1 || maximum_payload < kMaxPayload; }
};

// INVALID_ARGUMENT, with the value and what it may be, where `sizes` are not as above.
absl::Status CheckBlockSizes(const BlockSizes& sizes);

// What clients of an export on a device with `traits` are told: `sizes`, which passed the check, with nothing
// left open.
BlockSizes ToldBlockSizes(const BlockSizes& sizes, const BlockTraits& traits);

// Makes extents that begin at a multiple of `minimum` end at multiples too. Blocks with something of several
// kinds become data, of which nothing is said. Of more than kMaxExtents the last are left out.
void AlignExtents(uint32_t minimum, std::vector<Extent>* extents);

}  // namespace berth::nbd

#endif  // BERTH_NBD_BLOCK_SIZES_H_
