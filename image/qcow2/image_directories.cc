#include "image/qcow2/image_directories.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "image/qcow2/metadata_reader.h"

namespace berth::qcow2 {

absl::StatusOr<std::vector<Snapshot>> ReadSnapshots(BlockDevice& image, const Header& header) {
  if (header.snapshot_count == 0) return std::vector<Snapshot>();
  std::vector<uint8_t> table(std::min(SnapshotTableBytes(header), image.size() - header.snapshots_offset));
  absl::Status status = ReadMetadata(image, header.snapshots_offset, absl::MakeSpan(table));
  if (!status.ok()) return status;
  return DecodeSnapshotTable(table, header, image.size());
}

absl::StatusOr<std::vector<BitmapEntry>> ReadBitmaps(BlockDevice& image, const Header& header) {
  if (!header.bitmaps.has_value() || (header.autoclear_features & kBitmapsConsistent) == 0) {
    return std::vector<BitmapEntry>();
  }
  if (header.bitmaps->directory_size > kMaxBitmapDirectoryBytes) {
    return absl::InvalidArgumentError(absl::StrCat("broken qcow2 image: bitmap_directory_size is ",
                                                   header.bitmaps->directory_size, "; at most ",
                                                   kMaxBitmapDirectoryBytes, " bytes are possible"));
  }
  std::vector<uint8_t> directory(header.bitmaps->directory_size);
  if (!directory.empty()) {
    absl::Status status = ReadMetadata(image, header.bitmaps->directory_offset, absl::MakeSpan(directory));
    if (!status.ok()) return status;
  }
  return DecodeBitmapDirectory(directory, header, image.size());
}

}  // namespace berth::qcow2
