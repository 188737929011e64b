// "Bitmaps": the bitmap directory and the bitmap tables. Pure; no I/O.
#ifndef BERTH_IMAGE_QCOW2_FORMAT_BITMAP_DIRECTORY_H_
#define BERTH_IMAGE_QCOW2_FORMAT_BITMAP_DIRECTORY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

inline constexpr uint32_t kMaxBitmaps = 65'535;
inline constexpr uint32_t kMaxBitmapNameBytes = 1023;
inline constexpr uint64_t kMaxBitmapDirectoryBytes = uint64_t{64} << 20;
inline constexpr uint32_t kMinBitmapGranularityBits = 9;
inline constexpr uint32_t kMaxBitmapGranularityBits = 31;
// Of the directory's entry, behind which its flags stand.
inline constexpr uint64_t kBitmapFlagsAt = 12;

// Bits of "flags".
inline constexpr uint32_t kBitmapInUse = 1 << 0;
inline constexpr uint32_t kBitmapAuto = 1 << 1;
inline constexpr uint32_t kBitmapExtraDataCompatible = 1 << 2;

struct BitmapEntry {
  std::string name;
  uint64_t table_offset = 0;
  uint32_t table_size = 0;  // Entries.
  uint32_t flags = 0;
  uint8_t granularity_bits = 16;
  std::vector<uint8_t> extra_data;  // Kept as it is.

  bool operator==(const BitmapEntry&) const = default;

  bool in_use() const { return (flags & kBitmapInUse) != 0; }
  bool enabled() const { return (flags & kBitmapAuto) != 0; }
  // Its meaning is not changed by data that we do not know.
  bool understood() const { return extra_data.empty() || (flags & kBitmapExtraDataCompatible) != 0; }
  // Bytes in the directory.
  uint64_t bytes() const { return (24 + extra_data.size() + name.size() + 7) / 8 * 8; }
};

// Bits of a bitmap over a disk of `disk_size` bytes.
constexpr uint64_t BitmapBits(uint64_t disk_size, uint32_t granularity_bits) {
  const uint64_t grain = uint64_t{1} << granularity_bits;
  return disk_size / grain + (disk_size % grain != 0 ? 1 : 0);
}

// Entries of its table.
constexpr uint64_t BitmapTableEntries(uint64_t bits, uint64_t cluster_size) {
  const uint64_t bytes = (bits + 7) / 8;
  return (bytes + cluster_size - 1) / cluster_size;
}

// `directory` is all of it: header.bitmaps->directory_size bytes. INVALID_ARGUMENT names bitmap and field.
// Tables lie inside the file; those of bitmaps that are not in use have the disk's size.
absl::StatusOr<std::vector<BitmapEntry>> DecodeBitmapDirectory(absl::Span<const uint8_t> directory,
                                                               const Header& header, uint64_t file_size);

std::vector<uint8_t> EncodeBitmapDirectory(const std::vector<BitmapEntry>& entries);

// What an entry of a bitmap table says of its part of the bitmap.
struct BitmapPart {
  uint64_t offset = 0;    // Of the cluster in the file; 0 where there is none.
  bool all_ones = false;  // Where there is none.
};

// Nothing where reserved bits are set, or the cluster is none of the file.
std::optional<BitmapPart> DecodeBitmapPart(const Header& header, uint64_t entry, uint64_t file_size);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_FORMAT_BITMAP_DIRECTORY_H_
