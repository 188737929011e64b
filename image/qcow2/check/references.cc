#include "image/qcow2/check/references.h"

#include <algorithm>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "image/io/big_endian.h"
#include "image/qcow2/format/bitmap_directory.h"
#include "image/qcow2/format/cluster_entry.h"
#include "image/qcow2/format/snapshot_table.h"
#include "image/qcow2/metadata_reader.h"

namespace berth::qcow2 {
namespace {

class Counting {
 public:
  Counting(BlockDevice& image, const Header& header, Progress& progress, ReferenceCounts* counts,
           CheckResult* result)
      : image_(image),
        header_(header),
        layout_(header),
        file_size_(image.size()),
        progress_(progress),
        counts_(*counts),
        result_(result) {}

  absl::Status Run() {
    absl::StatusOr<std::vector<Snapshot>> snapshots = ReadSnapshots();
    if (!snapshots.ok()) return snapshots.status();
    uint64_t tables = header_.l1_size;
    for (const Snapshot& snapshot : *snapshots) tables += snapshot.l1_size;
    progress_.SetTotal(tables * header_.l2_coverage());
    AddRange(0, header_.cluster_size());
    AddRange(header_.refcount_table_offset,
             uint64_t{header_.refcount_table_clusters} << header_.cluster_bits);
    if (header_.encryption.has_value()) AddRange(header_.encryption->offset, header_.encryption->length);
    absl::Status status = AddL1(header_.l1_table_offset, header_.l1_size, /*active=*/true);
    for (const Snapshot& snapshot : *snapshots) {
      if (!status.ok()) return status;
      status = AddL1(snapshot.l1_table_offset, snapshot.l1_size, /*active=*/false);
    }
    return status.ok() ? AddBitmaps() : status;
  }

 private:
  // A reference to each cluster of the range. False where it does not lie inside the file.
  bool AddRange(uint64_t offset, uint64_t bytes) {
    if (bytes == 0) return true;
    const uint64_t last = (offset + bytes - 1) >> header_.cluster_bits;
    if (offset + bytes < offset || last >= counts_.clusters()) return false;
    for (uint64_t cluster = offset >> header_.cluster_bits; cluster <= last; ++cluster) counts_.Add(cluster);
    return true;
  }

  template <typename... Parts>
  void Corruption(const Parts&... parts) {
    ++result_->corruptions;
    Note(result_, parts...);
  }

  absl::StatusOr<std::vector<Snapshot>> ReadSnapshots() {
    if (header_.snapshot_count == 0) return std::vector<Snapshot>();
    std::vector<uint8_t> table(std::min(SnapshotTableBytes(header_), file_size_ - header_.snapshots_offset));
    absl::Status status = ReadMetadata(image_, header_.snapshots_offset, absl::MakeSpan(table));
    if (!status.ok()) return status;
    absl::StatusOr<std::vector<Snapshot>> snapshots = DecodeSnapshotTable(table, header_, file_size_);
    if (snapshots.ok()) AddRange(header_.snapshots_offset, EncodeSnapshotTable(*snapshots).size());
    return snapshots;
  }

  absl::Status AddL1(uint64_t offset, uint64_t entries, bool active) {
    AddRange(offset, entries * 8);
    absl::StatusOr<std::vector<uint64_t>> l1 = ReadTable(image_, offset, entries);
    if (!l1.ok()) return l1.status();
    for (const uint64_t entry : *l1) {
      if (progress_.cancelled()) return absl::CancelledError("the check was cancelled");
      const std::optional<uint64_t> table = L2TableOffset(layout_, entry);
      if (!table.has_value() || (*table != 0 && !AddRange(*table, header_.cluster_size()))) {
        Corruption("an entry of the L1 table at offset ", offset, " names no L2 table: ", absl::Hex(entry));
      } else if (*table != 0) {
        if (absl::Status status = AddL2(*table, active); !status.ok()) return status;
      }
      done_ += header_.l2_coverage();
      progress_.SetDone(done_);
    }
    return absl::OkStatus();
  }

  absl::Status AddL2(uint64_t table, bool active) {
    absl::StatusOr<std::vector<uint64_t>> words = ReadTable(image_, table, header_.cluster_size() / 8);
    if (!words.ok()) return words.status();
    next_ = 0;
    for (size_t i = 0; i < words->size(); i += layout_.entry_words()) AddEntry((*words)[i], table, active);
    return absl::OkStatus();
  }

  void AddEntry(uint64_t entry, uint64_t table, bool active) {
    if ((entry & kCompressed) != 0) {
      const std::optional<CompressedExtent> extent = DecodeCompressed(layout_, entry);
      if (layout_.external_data || !extent.has_value() ||
          !AddRange(extent->offset, CompressedBytes(*extent))) {
        return Corruption("an entry of the L2 table at offset ", table,
                          " names no compressed cluster: ", absl::Hex(entry));
      }
      if (!active) return;
      ++result_->allocated_clusters;
      ++result_->compressed_clusters;
      ++result_->fragmented_clusters;  // They never begin where a cluster would.
      return;
    }
    const uint64_t offset = entry & kOffsetMask;
    const uint64_t flags = kCopied | (layout_.zero_flag ? kReadsAsZero : 0);
    if ((entry & ~(kOffsetMask | flags)) != 0 || offset % header_.cluster_size() != 0) {
      return Corruption("an entry of the L2 table at offset ", table, " is none: ", absl::Hex(entry));
    }
    if (layout_.external_data) {
      // Offset 0 is a cluster there; the flag says which entries have one.
      if (active && (offset != 0 || (entry & kCopied) != 0)) CountAllocated(offset);
      return;
    }
    if (offset == 0) return;
    if (!AddRange(offset, header_.cluster_size())) {
      return Corruption("an entry of the L2 table at offset ", table,
                        " names a cluster behind the end of the file, at ", offset);
    }
    if (active) CountAllocated(offset);
  }

  // The last sector of compressed data may reach behind the end of the file.
  uint64_t CompressedBytes(const CompressedExtent& extent) const {
    if (extent.offset >= file_size_) return extent.length;
    return std::min(extent.length, file_size_ - extent.offset);
  }

  void CountAllocated(uint64_t offset) {
    ++result_->allocated_clusters;
    if (next_ != 0 && offset != next_) ++result_->fragmented_clusters;
    next_ = offset + header_.cluster_size();
  }

  absl::Status AddBitmaps() {
    // Without the bit the extension is what some writer forgot.
    if (!header_.bitmaps.has_value() || (header_.autoclear_features & kBitmapsConsistent) == 0) {
      return absl::OkStatus();
    }
    const BitmapsExtension& bitmaps = *header_.bitmaps;
    std::vector<uint8_t> directory(bitmaps.directory_size);
    if (!AddRange(bitmaps.directory_offset, bitmaps.directory_size)) {
      return absl::InvalidArgumentError("broken qcow2 image: the bitmap directory lies outside the file");
    }
    absl::Status status = ReadMetadata(image_, bitmaps.directory_offset, absl::MakeSpan(directory));
    if (!status.ok()) return status;
    absl::StatusOr<std::vector<BitmapEntry>> entries = DecodeBitmapDirectory(directory, header_, file_size_);
    if (!entries.ok()) return entries.status();
    for (const BitmapEntry& bitmap : *entries) {
      if (status = AddBitmap(bitmap); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status AddBitmap(const BitmapEntry& bitmap) {
    AddRange(bitmap.table_offset, uint64_t{bitmap.table_size} * 8);
    absl::StatusOr<std::vector<uint64_t>> table = ReadTable(image_, bitmap.table_offset, bitmap.table_size);
    if (!table.ok()) return table.status();
    for (const uint64_t entry : *table) {
      const std::optional<BitmapPart> part = DecodeBitmapPart(header_, entry, file_size_);
      if (!part.has_value()) {
        Corruption("an entry of the table of the bitmap \"", bitmap.name, "\" is none: ", absl::Hex(entry));
      } else if (part->offset != 0) {
        AddRange(part->offset, header_.cluster_size());
      }
    }
    return absl::OkStatus();
  }

  BlockDevice& image_;
  const Header& header_;
  const EntryLayout layout_;
  const uint64_t file_size_;
  Progress& progress_;
  ReferenceCounts& counts_;
  CheckResult* const result_;
  uint64_t done_ = 0;
  uint64_t next_ = 0;  // Where the next cluster would be, in order.
};

}  // namespace

absl::Status ReadPadded(BlockDevice& image, uint64_t offset, absl::Span<uint8_t> out) {
  const uint64_t size = image.size();
  const size_t there = offset < size ? static_cast<size_t>(std::min<uint64_t>(out.size(), size - offset)) : 0;
  std::fill(out.begin() + static_cast<ptrdiff_t>(there), out.end(), uint8_t{0});
  return there == 0 ? absl::OkStatus() : ReadMetadata(image, offset, out.first(there));
}

absl::StatusOr<std::vector<uint64_t>> ReadTable(BlockDevice& image, uint64_t offset, uint64_t entries) {
  std::vector<uint8_t> bytes(entries * 8);
  if (absl::Status status = ReadPadded(image, offset, absl::MakeSpan(bytes)); !status.ok()) return status;
  std::vector<uint64_t> table(entries);
  for (size_t i = 0; i < table.size(); ++i) table[i] = Load64(&bytes[i * 8]);
  return table;
}

absl::Status CountReferences(BlockDevice& image, const Header& header, Progress& progress,
                             ReferenceCounts* counts, CheckResult* result) {
  return Counting(image, header, progress, counts, result).Run();
}

}  // namespace berth::qcow2
