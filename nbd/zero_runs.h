// Where what was read is zero, so that NBD_REPLY_TYPE_OFFSET_HOLE can be sent in its place.
//
// It is the bytes that are looked at, and not the device's extents: that needs no look-up, which would cost
// more than a short read, finds zeroes that take space as well as holes, and cannot go out of date between
// the look and the read. Plain data shows itself in the first bytes of each granule, so it costs a look at
// one cache line in kZeroGranule bytes that are in the cache anyway; zeroes cost one pass, and then save two
// copies.
#ifndef BERTH_NBD_ZERO_RUNS_H_
#define BERTH_NBD_ZERO_RUNS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "image/block/content_runs.h"

namespace berth::nbd {

// Runs begin and end at multiples of this, or at the ends of the read.
inline constexpr size_t kZeroGranule = size_t{32} << 10;
// Shorter ones are sent as the data they are.
inline constexpr size_t kShortestZeroRun = 512;

// The runs of `data`, which lies at `offset` in the export (image/block/content_runs.h).
inline std::vector<ContentRun> FindZeroRuns(uint64_t offset, absl::Span<const uint8_t> data) {
  return berth::FindZeroRuns(offset, data, kZeroGranule, kShortestZeroRun);
}

}  // namespace berth::nbd

#endif  // BERTH_NBD_ZERO_RUNS_H_
