#include "image/qcow2/check/references.h"

#include <algorithm>
#include <map>
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

// What the smallest images have in tables.
constexpr uint64_t kTableBytesAlways = uint64_t{1} << 20;

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
    AddRange(0, header_.cluster_size());
    AddRange(header_.refcount_table_offset,
             uint64_t{header_.refcount_table_clusters} << header_.cluster_bits);
    if (header_.encryption.has_value()) AddRange(header_.encryption->offset, header_.encryption->length);
    absl::Status status = AddL1(header_.l1_table_offset, header_.l1_size, /*active=*/true);
    for (const Snapshot& snapshot : *snapshots) {
      if (!status.ok()) return status;
      status = AddL1(snapshot.l1_table_offset, snapshot.l1_size, /*active=*/false);
    }
    if (status.ok()) status = AddBitmaps();
    return status.ok() ? AddL2Tables() : status;
  }

 private:
  // An L2 table, by what names it.
  struct Table {
    uint64_t times = 0;
    bool active = false;  // The disk, and not snapshots alone.
  };

  // References to each cluster of the range. False where it does not lie inside the file.
  bool AddRange(uint64_t offset, uint64_t bytes, uint64_t times = 1) {
    if (bytes == 0) return true;
    const uint64_t last = (offset + bytes - 1) >> header_.cluster_bits;
    if (offset + bytes < offset || last >= counts_.clusters()) return false;
    for (uint64_t cluster = offset >> header_.cluster_bits; cluster <= last; ++cluster) {
      counts_.Add(cluster, times);
    }
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

  // Tables share no bytes, so together they are no longer than the file. A small file could else name one
  // large table ten thousands of times, and keep us reading for days.
  absl::StatusOr<std::vector<uint64_t>> ReadOnce(uint64_t offset, uint64_t entries) {
    table_bytes_ += entries * 8;
    if (table_bytes_ > std::max(file_size_, kTableBytesAlways)) {
      return absl::InvalidArgumentError(
          "broken qcow2 image: its L1 and bitmap tables together are larger than its file");
    }
    return ReadTable(image_, offset, entries);
  }

  absl::Status AddL1(uint64_t offset, uint64_t entries, bool active) {
    if (progress_.cancelled()) return Cancelled();
    AddRange(offset, entries * 8);
    absl::StatusOr<std::vector<uint64_t>> l1 = ReadOnce(offset, entries);
    if (!l1.ok()) return l1.status();
    for (const uint64_t entry : *l1) {
      const std::optional<uint64_t> table = L2TableOffset(layout_, entry);
      if (!table.has_value() || (*table != 0 && !AddRange(*table, header_.cluster_size()))) {
        Corruption("an entry of the L1 table at offset ", offset, " names no L2 table: ", absl::Hex(entry));
      } else if (*table != 0) {
        Table& use = l2_tables_[*table];
        ++use.times;
        use.active = use.active || active;
      }
    }
    return absl::OkStatus();
  }

  // Each is read once, however many L1 entries name it.
  absl::Status AddL2Tables() {
    progress_.SetTotal(l2_tables_.size() * header_.l2_coverage());
    uint64_t done = 0;
    for (const auto& [offset, use] : l2_tables_) {
      if (progress_.cancelled()) return Cancelled();
      absl::StatusOr<std::vector<uint64_t>> words = ReadTable(image_, offset, header_.cluster_size() / 8);
      if (!words.ok()) return words.status();
      next_ = 0;
      for (size_t i = 0; i < words->size(); i += layout_.entry_words()) AddEntry((*words)[i], offset, use);
      progress_.SetDone(done += header_.l2_coverage());
    }
    return absl::OkStatus();
  }

  static absl::Status Cancelled() { return absl::CancelledError("the check was cancelled"); }

  void AddEntry(uint64_t entry, uint64_t table, const Table& use) {
    if ((entry & kCompressed) != 0) {
      const std::optional<CompressedExtent> extent = DecodeCompressed(layout_, entry);
      if (layout_.external_data || !extent.has_value() ||
          !AddRange(extent->offset, CompressedBytes(*extent), use.times)) {
        return Corruption("an entry of the L2 table at offset ", table,
                          " names no compressed cluster: ", absl::Hex(entry));
      }
      if (!use.active) return;
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
      if (use.active && (offset != 0 || (entry & kCopied) != 0)) CountAllocated(offset);
      return;
    }
    if (offset == 0) return;
    if (!AddRange(offset, header_.cluster_size(), use.times)) {
      return Corruption("an entry of the L2 table at offset ", table,
                        " names a cluster behind the end of the file, at ", offset);
    }
    if (use.active) CountAllocated(offset);
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
    if (progress_.cancelled()) return Cancelled();
    absl::StatusOr<std::vector<uint64_t>> table = ReadOnce(bitmap.table_offset, bitmap.table_size);
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
  uint64_t table_bytes_ = 0;
  std::map<uint64_t, Table> l2_tables_;
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
