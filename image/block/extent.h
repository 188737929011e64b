// Extent: a run of an image of which one thing is true.
#ifndef BERTH_IMAGE_BLOCK_EXTENT_H_
#define BERTH_IMAGE_BLOCK_EXTENT_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace berth {

// The most extents that one call of BlockChannel::Extents gives, which bounds its memory: a file can have one
// for every block.
inline constexpr size_t kMaxExtents = 8192;

struct Extent {
  uint64_t length = 0;    // Bytes, never 0.
  bool allocated = true;  // Space is set aside for it; false is NBD_STATE_HOLE.
  bool zero = false;      // It reads as zeroes.

  constexpr bool SameKind(const Extent& other) const {
    return allocated == other.allocated && zero == other.zero;
  }
  constexpr bool operator==(const Extent&) const = default;
};

// Appends `extent`, merged with the last one where both are of a kind.
inline void AppendExtent(const Extent& extent, std::vector<Extent>* extents) {
  if (!extents->empty() && extents->back().SameKind(extent)) {
    extents->back().length += extent.length;
  } else {
    extents->push_back(extent);
  }
}

}  // namespace berth

#endif  // BERTH_IMAGE_BLOCK_EXTENT_H_
