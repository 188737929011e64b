#include "nbd/block_sizes.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace berth::nbd {
namespace {

// "Size constraints".
constexpr uint32_t kLargestMinimum = 65'536;
constexpr uint32_t kSmallestPreferred = 512;
constexpr uint32_t kSmallestMaximum = 1 << 20;

bool IsPowerOfTwo(uint32_t value) { return value != 0 && (value & (value - 1)) == 0; }

uint32_t PowerOfTwoUpTo(uint32_t value) { return uint32_t{1} << (31 - __builtin_clz(value)); }

void Append(const Extent& extent, std::vector<Extent>* extents) {
  if (extent.length == 0) return;
  if (!extents->empty() && extents->back().SameKind(extent)) {
    extents->back().length += extent.length;
  } else {
    extents->push_back(extent);
  }
}

}  // namespace

absl::Status CheckBlockSizes(const BlockSizes& sizes) {
  if (!IsPowerOfTwo(sizes.minimum) || sizes.minimum > kLargestMinimum) {
    return absl::InvalidArgumentError(absl::StrCat("a minimum block size of ", sizes.minimum,
                                                   "; it is a power of two of at most ", kLargestMinimum));
  }
  if (sizes.maximum_payload < kSmallestMaximum || sizes.maximum_payload > kMaxPayload) {
    return absl::InvalidArgumentError(absl::StrCat("a maximum payload of ", sizes.maximum_payload,
                                                   " bytes; it lies between ", kSmallestMaximum, " and ",
                                                   kMaxPayload));
  }
  const uint32_t least = std::max(kSmallestPreferred, sizes.minimum);
  if (sizes.preferred != 0 && (!IsPowerOfTwo(sizes.preferred) || sizes.preferred < least ||
                               sizes.preferred > sizes.maximum_payload)) {
    return absl::InvalidArgumentError(absl::StrCat("a preferred block size of ", sizes.preferred,
                                                   "; it is a power of two between ", least, " and ",
                                                   sizes.maximum_payload));
  }
  return absl::OkStatus();
}

BlockSizes ToldBlockSizes(const BlockSizes& sizes, const BlockTraits& traits) {
  BlockSizes told = sizes;
  if (told.preferred == 0) {
    told.preferred =
        std::clamp(traits.preferred_alignment, std::max(kDefaultPreferredBlockSize, told.minimum),
                   PowerOfTwoUpTo(told.maximum_payload));
  }
  return told;
}

void AlignExtents(uint32_t minimum, std::vector<Extent>* extents) {
  const uint64_t block = minimum;
  uint64_t end = 0;
  bool aligned = true;
  for (const Extent& extent : *extents) aligned &= (end += extent.length) % block == 0;
  if (aligned) return;
  const uint64_t all = end;
  std::vector<Extent> rounded;
  uint64_t done = 0;  // What `rounded` covers.
  end = 0;
  for (const Extent& extent : *extents) {
    end += extent.length;
    if (end <= done) continue;
    const uint64_t whole = end / block * block;
    if (whole > done) Append({whole - done, extent.allocated, extent.zero}, &rounded);
    done = std::max(done, whole);
    // The block that this extent shares with the next, unless there is no next to know it by.
    if (end > done && (end < all || done == 0)) {
      Append({block, true, false}, &rounded);
      done += block;
    }
    // Each of ours may make two: neighbours of which neither is data share a block that is.
    if (rounded.size() >= kMaxExtents) break;
  }
  if (rounded.size() > kMaxExtents) rounded.resize(kMaxExtents);
  *extents = std::move(rounded);
}

}  // namespace berth::nbd
