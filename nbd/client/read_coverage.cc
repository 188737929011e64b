#include "nbd/client/read_coverage.h"

#include <algorithm>

namespace berth::nbd {

ReadCoverage::Outcome ReadCoverage::Add(uint64_t offset, uint64_t length) {
  if (length == 0 || offset < begin_ || offset > end_ || length > end_ - offset) return Outcome::kOutside;
  const uint64_t end = offset + length;
  // The first piece that ends at or after the new one's begin: what it may touch, or overlap.
  const auto next = std::partition_point(pieces_.begin(), pieces_.end(),
                                         [offset](const Piece& piece) { return piece.end < offset; });
  auto after = next;
  if (next != pieces_.end() && next->end == offset) ++after;
  if (after != pieces_.end() && after->begin < end) return Outcome::kOverlaps;

  const bool joins_before = after != next;
  const bool joins_after = after != pieces_.end() && after->begin == end;
  if (joins_before && joins_after) {
    next->end = after->end;
    pieces_.erase(after);
  } else if (joins_before) {
    next->end = end;
  } else if (joins_after) {
    after->begin = offset;
  } else {
    if (pieces_.size() == kMaxPieces) return Outcome::kTooScattered;
    pieces_.insert(next, {offset, end});
  }
  covered_ += length;
  return Outcome::kAdded;
}

}  // namespace berth::nbd
