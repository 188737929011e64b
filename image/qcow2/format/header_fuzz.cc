// Arbitrary bytes as the beginning of an image: the decoder must not read outside them, and what it accepts
// must be encoded to the same again.
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "image/io/big_endian.h"
#include "image/qcow2/format/bitmap_directory.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/format/snapshot_table.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace berth::qcow2;
  const absl::Span<const uint8_t> bytes(data, size);
  const absl::StatusOr<Header> header = DecodeHeader(bytes, size);
  if (!header.ok()) return 0;
  if (header->snapshot_count > 0) {
    const absl::Span<const uint8_t> table =
        bytes.subspan(header->snapshots_offset).subspan(0, SnapshotTableBytes(*header));
    const auto snapshots = DecodeSnapshotTable(table, *header, size);
    if (snapshots.ok() && header->version >= 3) {
      const auto again = DecodeSnapshotTable(EncodeSnapshotTable(*snapshots), *header, size);
      if (!again.ok() || *again != *snapshots) abort();
    }
  }
  if (header->bitmaps.has_value() && (header->autoclear_features & kBitmapsConsistent) != 0) {
    const absl::Span<const uint8_t> directory =
        bytes.subspan(header->bitmaps->directory_offset).subspan(0, header->bitmaps->directory_size);
    const auto bitmaps = DecodeBitmapDirectory(directory, *header, size);
    if (bitmaps.ok()) {
      const auto again = DecodeBitmapDirectory(EncodeBitmapDirectory(*bitmaps), *header, size);
      if (!again.ok() || *again != *bitmaps) abort();
      for (const BitmapEntry& entry : *bitmaps) {
        for (uint64_t i = 0; i < entry.table_size; ++i) {
          const auto part =
              DecodeBitmapPart(*header, berth::Load64(&bytes[entry.table_offset + i * 8]), size);
          if (part.has_value() && part->offset >= size) abort();
        }
      }
    }
  }
  const absl::StatusOr<std::vector<uint8_t>> encoded = EncodeHeader(*header);
  // Extensions may lie more densely than they are written.
  if (!encoded.ok()) return 0;
  const absl::StatusOr<Header> again = DecodeHeader(*encoded, size);
  if (!again.ok() || !(*again == *header)) abort();
  return 0;
}
