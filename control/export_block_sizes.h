// The size constraints of an export: the API's words for those of nbd/.
#ifndef BERTH_CONTROL_EXPORT_BLOCK_SIZES_H_
#define BERTH_CONTROL_EXPORT_BLOCK_SIZES_H_

#include "berth/v1/exports.pb.h"
#include "nbd/block_sizes.h"

namespace berth::control {

// With the defaults in place of zeroes. Pure; any thread.
nbd::BlockSizes ToBlockSizes(const v1::BlockSizes& sizes);

// Zeroes in place of defaults that are written out, as both mean the same.
void LeaveOutDefaults(v1::BlockSizes* sizes);

}  // namespace berth::control

#endif  // BERTH_CONTROL_EXPORT_BLOCK_SIZES_H_
