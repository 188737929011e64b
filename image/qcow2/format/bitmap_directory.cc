#include "image/qcow2/format/bitmap_directory.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "image/io/big_endian.h"
#include "image/qcow2/format/cluster_entry.h"

namespace berth::qcow2 {
namespace {

constexpr size_t kFixedBytes = 24;
constexpr uint8_t kDirtyTracking = 1;
constexpr uint32_t kKnownFlags = kBitmapInUse | kBitmapAuto | kBitmapExtraDataCompatible;

template <typename... Parts>
absl::Status Broken(size_t index, const Parts&... parts) {
  return absl::InvalidArgumentError(
      absl::StrCat("broken qcow2 image: entry ", index, " of the bitmap directory ", parts...));
}

absl::Status CheckEntry(const BitmapEntry& entry, size_t index, const Header& header, uint64_t file_size) {
  if ((entry.flags & ~kKnownFlags) != 0) return Broken(index, "has reserved flags: ", entry.flags);
  if (entry.granularity_bits < kMinBitmapGranularityBits ||
      entry.granularity_bits > kMaxBitmapGranularityBits) {
    return Broken(index, "has granularity_bits ", static_cast<int>(entry.granularity_bits), "; possible are ",
                  kMinBitmapGranularityBits, " to ", kMaxBitmapGranularityBits);
  }
  const uint64_t expected =
      BitmapTableEntries(BitmapBits(header.size, entry.granularity_bits), header.cluster_size());
  // What was not closed may be of a disk that was larger or smaller.
  if (!entry.in_use() && entry.table_size != expected) {
    return Broken(index, "has bitmap_table_size ", entry.table_size, "; a disk of ", header.size,
                  " bytes takes ", expected);
  }
  const uint64_t bytes = uint64_t{entry.table_size} * 8;
  if (entry.table_offset % header.cluster_size() != 0 || (entry.table_offset == 0 && bytes != 0) ||
      entry.table_offset > file_size || bytes > file_size - entry.table_offset) {
    return Broken(index, "has its bitmap table at offset ", entry.table_offset, " with ", bytes,
                  " bytes, which does not begin on a cluster or ends behind the file, which has ", file_size,
                  " bytes");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<BitmapEntry>> DecodeBitmapDirectory(absl::Span<const uint8_t> directory,
                                                               const Header& header, uint64_t file_size) {
  std::vector<BitmapEntry> entries;
  absl::flat_hash_set<std::string> names;
  const uint32_t count = header.bitmaps->count;
  if (count > kMaxBitmaps) {
    return absl::InvalidArgumentError(absl::StrCat("broken qcow2 image: nb_bitmaps is ", count, "; at most ",
                                                   kMaxBitmaps, " are possible"));
  }
  for (size_t i = 0; i < count; ++i) {
    if (directory.size() < kFixedBytes) return Broken(i, "lies behind the end of the directory");
    BitmapEntry entry;
    entry.table_offset = Load64(&directory[0]);
    entry.table_size = Load32(&directory[8]);
    entry.flags = Load32(&directory[kBitmapFlagsAt]);
    const uint8_t type = directory[16];
    entry.granularity_bits = directory[17];
    const size_t name_bytes = Load16(&directory[18]);
    const size_t extra_bytes = Load32(&directory[20]);
    if (type != kDirtyTracking) return Broken(i, "has type ", static_cast<int>(type), "; known is 1");
    if (name_bytes == 0 || name_bytes > kMaxBitmapNameBytes) {
      return Broken(i, "has name_size ", name_bytes, "; possible are 1 to ", kMaxBitmapNameBytes);
    }
    if (extra_bytes > directory.size() - kFixedBytes ||
        name_bytes > directory.size() - kFixedBytes - extra_bytes) {
      return Broken(i, "has ", extra_bytes, " bytes of extra data and ends behind the directory");
    }
    const auto extra = directory.subspan(kFixedBytes, extra_bytes);
    const auto name = directory.subspan(kFixedBytes + extra_bytes, name_bytes);
    entry.extra_data.assign(extra.begin(), extra.end());
    entry.name.assign(name.begin(), name.end());
    if (entry.name.find('\0') != std::string::npos) return Broken(i, "has a NUL byte in its name");
    if (!names.insert(entry.name).second) return Broken(i, "has the name of another one");
    const absl::Status status = CheckEntry(entry, i, header, file_size);
    if (!status.ok()) return status;
    directory.remove_prefix(std::min<uint64_t>(directory.size(), entry.bytes()));
    entries.push_back(std::move(entry));
  }
  if (!directory.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("broken qcow2 image: bitmap_directory_size is ",
                                                   header.bitmaps->directory_size, ", ", directory.size(),
                                                   " bytes more than its ", count, " entries have"));
  }
  return entries;
}

std::vector<uint8_t> EncodeBitmapDirectory(const std::vector<BitmapEntry>& entries) {
  std::vector<uint8_t> directory;
  for (const BitmapEntry& entry : entries) {
    const size_t at = directory.size();
    directory.resize(at + kFixedBytes);
    uint8_t* const fixed = &directory[at];
    Store64(fixed, entry.table_offset);
    Store32(fixed + 8, entry.table_size);
    Store32(fixed + kBitmapFlagsAt, entry.flags);
    fixed[16] = kDirtyTracking;
    fixed[17] = entry.granularity_bits;
    Store16(fixed + 18, static_cast<uint16_t>(entry.name.size()));
    Store32(fixed + 20, static_cast<uint32_t>(entry.extra_data.size()));
    directory.insert(directory.end(), entry.extra_data.begin(), entry.extra_data.end());
    directory.insert(directory.end(), entry.name.begin(), entry.name.end());
    directory.resize(at + entry.bytes());
  }
  return directory;
}

std::optional<BitmapPart> DecodeBitmapPart(const Header& header, uint64_t entry, uint64_t file_size) {
  const uint64_t offset = entry & kOffsetMask;
  if (offset == 0) return entry > 1 ? std::nullopt : std::optional(BitmapPart{0, entry == 1});
  if (entry != offset || offset % header.cluster_size() != 0 || offset >= file_size) return std::nullopt;
  return BitmapPart{offset, false};
}

}  // namespace berth::qcow2
