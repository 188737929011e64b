// The transmission flags of an export: what a client may ask of it.
#ifndef BERTH_NBD_CAPABILITIES_H_
#define BERTH_NBD_CAPABILITIES_H_

#include <cstdint>

#include "nbd/block_sizes.h"
#include "nbd/export.h"
#include "nbd/negotiated.h"

namespace berth::nbd {

// proto.md, "Transmission flags". The handshake tells the client, control/attachment tells the kernel, and
// the session refuses what is not in it. Pure; any thread.
// `has_contexts`: the client selected a metadata context.
uint16_t TransmissionFlags(const Export& served, ReplyStyle reply_style, bool has_contexts = false);

// The size that clients with such block sizes are told: what does not fill a block of the device's end is
// left out, as it could not be addressed ("Size constraints"). Pure; any thread.
uint64_t ServedSize(const Export& served, const BlockSizes& sizes);

}  // namespace berth::nbd

#endif  // BERTH_NBD_CAPABILITIES_H_
