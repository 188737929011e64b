#include "image/raw/file_extents.h"

#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "image/raw/extent_cache.h"

namespace berth {
namespace {

// Pairs of lseek(2) that one call makes at most.
constexpr int kMostSeeks = 128;
// Extents that one FIEMAP gives, and how many of those are made for one stretch without data.
constexpr uint32_t kMapped = 32;
constexpr int kMostMaps = 6;

uint64_t Total(const std::vector<Extent>& extents) {
  uint64_t total = 0;
  for (const Extent& extent : extents) total += extent.length;
  return total;
}

// Space in [begin, end), where there is no data. False where the file system does not say.
bool AppendSpace(int fd, uint64_t begin, uint64_t end, std::vector<Extent>* extents) {
  uint64_t at = begin;
  for (int i = 0; i < kMostMaps && at < end; ++i) {
    alignas(fiemap) uint8_t bytes[sizeof(fiemap) + kMapped * sizeof(fiemap_extent)] = {};
    fiemap* const map = reinterpret_cast<fiemap*>(bytes);
    map->fm_start = at;
    map->fm_length = end - at;
    map->fm_extent_count = kMapped;
    if (ioctl(fd, FS_IOC_FIEMAP, map) != 0) return i > 0;
    const uint32_t count = std::min(map->fm_mapped_extents, kMapped);
    for (uint32_t j = 0; j < count; ++j) {
      const fiemap_extent& extent = map->fm_extents[j];
      const uint64_t first = std::clamp<uint64_t>(extent.fe_logical, at, end);
      const uint64_t last = std::clamp<uint64_t>(extent.fe_logical + extent.fe_length, first, end);
      if (last == first) continue;
      if (first > at) AppendExtent({first - at, false, true}, extents);
      // Somebody may have written since lseek(2) saw nothing there.
      const bool zero = (extent.fe_flags & FIEMAP_EXTENT_UNWRITTEN) != 0;
      AppendExtent({last - first, true, zero}, extents);
      at = last;
    }
    if (count < kMapped) {
      if (at < end) AppendExtent({end - at, false, true}, extents);
      return true;
    }
  }
  return true;
}

}  // namespace

int ReadFileExtents(int fd, uint64_t offset, uint64_t stop, uint64_t size, std::vector<Extent>* extents) {
  constexpr size_t kOneStretch = 2 * kMapped * kMostMaps + 2;
  static_assert(2 * kOneStretch <= kMostFileExtents);
  for (int i = 0; i < kMostSeeks && offset < stop && extents->size() + kOneStretch <= kMostFileExtents; ++i) {
    const off_t found = lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
    if (found < 0 && errno != ENXIO) return errno;
    const uint64_t data = found < 0 ? size : std::min(static_cast<uint64_t>(found), size);
    if (data > offset) {
      const uint64_t before = Total(*extents);
      if (!AppendSpace(fd, offset, data, extents)) AppendExtent({data - offset, false, true}, extents);
      offset += Total(*extents) - before;
      if (offset < data) return 0;  // There is more than one call tells.
    }
    if (data >= stop) break;
    const off_t end = lseek(fd, static_cast<off_t>(data), SEEK_HOLE);
    if (end < 0) return errno;
    const uint64_t hole = std::min(static_cast<uint64_t>(end), size);
    AppendExtent({hole - data, true, false}, extents);
    offset = hole;
  }
  return 0;
}

}  // namespace berth
