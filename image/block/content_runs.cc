#include "image/block/content_runs.h"

#include <algorithm>
#include <cstring>

namespace berth {
namespace {

void Append(ContentRun run, std::vector<ContentRun>* runs) {
  if (!runs->empty() && runs->back().zero == run.zero) {
    runs->back().length += run.length;
  } else {
    runs->push_back(run);
  }
}

}  // namespace

bool IsZero(absl::Span<const uint8_t> data) {
  // Every byte equals its neighbour, and the first is zero.
  return data[0] == 0 && memcmp(data.data(), data.data() + 1, data.size() - 1) == 0;
}

std::vector<ContentRun> FindZeroRuns(uint64_t offset, absl::Span<const uint8_t> data, size_t granule,
                                     size_t shortest) {
  std::vector<ContentRun> granules;
  while (!data.empty()) {
    const size_t length = std::min(data.size(), granule - static_cast<size_t>(offset % granule));
    Append({length, IsZero(data.first(length))}, &granules);
    offset += length;
    data.remove_prefix(length);
  }
  std::vector<ContentRun> runs;
  for (const ContentRun& run : granules) {
    Append({run.length, run.zero && run.length >= shortest}, &runs);
  }
  return runs;
}

}  // namespace berth
