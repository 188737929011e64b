// Where bytes in memory are zero: for whoever sends or writes less in their place.
#ifndef BERTH_IMAGE_BLOCK_CONTENT_RUNS_H_
#define BERTH_IMAGE_BLOCK_CONTENT_RUNS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace berth {

// Whether all of `data`, which is not empty, is zero. Plain data shows itself in its first bytes. Pure.
bool IsZero(absl::Span<const uint8_t> data);

struct ContentRun {
  size_t length = 0;
  bool zero = false;

  bool operator==(const ContentRun&) const = default;
};

// The runs of `data`, which lies at `offset` of its device: in order, covering it, two neighbours never of a
// kind. They begin and end at multiples of `granule`, or at the ends of the data; runs of zeroes shorter than
// `shortest` count as the data they are. Pure; any thread.
std::vector<ContentRun> FindZeroRuns(uint64_t offset, absl::Span<const uint8_t> data, size_t granule,
                                     size_t shortest);

}  // namespace berth

#endif  // BERTH_IMAGE_BLOCK_CONTENT_RUNS_H_
