#include "image/qcow2/refcount_repair.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/big_endian.h"
#include "image/qcow2/format/bitmap_directory.h"
#include "image/qcow2/format/cluster_entry.h"
#include "image/qcow2/format/refcount_block.h"
#include "image/qcow2/format/snapshot_table.h"
#include "image/qcow2/metadata_reader.h"

namespace berth::qcow2 {
namespace {

constexpr uint64_t kIncompatibleAt = 72;
// Clusters behind the end of the file that may be referenced, beside as many as the file has.
constexpr uint64_t kMostBehindEnd = 1 << 16;

absl::Status NeedsCheck(absl::string_view what) {
  return absl::FailedPreconditionError(
      absl::StrCat("the image was not closed after it was written with lazy refcounts, and ", what,
                   "; repair it with qemu-img check -r all"));
}

// What the file is too short for reads as zeroes.
absl::StatusOr<std::vector<uint8_t>> ReadTable(BlockDevice& image, uint64_t offset, uint64_t bytes) {
  const uint64_t size = image.size();
  std::vector<uint8_t> table(bytes);
  if (offset >= size || bytes == 0) return table;
  const absl::Status status =
      ReadMetadata(image, offset, absl::MakeSpan(table).subspan(0, std::min(bytes, size - offset)));
  if (!status.ok()) return status;
  return table;
}

absl::StatusOr<std::vector<uint64_t>> ReadWords(BlockDevice& image, uint64_t offset, uint64_t entries) {
  absl::StatusOr<std::vector<uint8_t>> bytes = ReadTable(image, offset, entries * 8);
  if (!bytes.ok()) return bytes.status();
  std::vector<uint64_t> words(entries);
  for (size_t i = 0; i < entries; ++i) words[i] = Load64(&(*bytes)[i * 8]);
  return words;
}

class ReferenceCounter {
 public:
  ReferenceCounter(BlockDevice& image, const Header& header)
      : image_(image),
        header_(header),
        layout_(header),
        counts_(((image.size() >> header.cluster_bits) + 1) * 2 + kMostBehindEnd) {}

  absl::Status CountAll() {
    absl::Status status = Add("the header", 0, header_.cluster_size());
    if (status.ok()) status = CountRefcountTable();
    if (status.ok()) status = CountL1("the L1 table", header_.l1_table_offset, header_.l1_size);
    if (status.ok() && header_.snapshot_count > 0) status = CountSnapshots();
    if (status.ok() && header_.encryption.has_value()) {
      status = Add("the encryption header", header_.encryption->offset, header_.encryption->length);
    }
    if (status.ok() && header_.bitmaps.has_value() &&
        (header_.autoclear_features & kBitmapsConsistent) != 0) {
      status = CountBitmaps();
    }
    return status;
  }

  std::vector<uint32_t> Take() { return std::move(counts_); }

 private:
  // Every cluster of the range has one more reference.
  absl::Status Add(absl::string_view what, uint64_t offset, uint64_t bytes) {
    if (bytes == 0) return absl::OkStatus();
    const uint64_t last = (offset + bytes - 1) >> header_.cluster_bits;
    if (last >= counts_.size()) {
      return absl::InvalidArgumentError(absl::StrCat("broken qcow2 image: ", what, " at offset ", offset,
                                                     " lies far behind the end of the file"));
    }
    for (uint64_t cluster = offset >> header_.cluster_bits; cluster <= last; ++cluster) ++counts_[cluster];
    return absl::OkStatus();
  }

  absl::Status CountRefcountTable() {
    const uint64_t bytes = uint64_t{header_.refcount_table_clusters} << header_.cluster_bits;
    absl::Status status = Add("the refcount table", header_.refcount_table_offset, bytes);
    if (!status.ok()) return status;
    const auto table = ReadWords(image_, header_.refcount_table_offset, bytes / 8);
    if (!table.ok()) return table.status();
    for (const uint64_t block : *table) {
      if (block == 0) continue;
      if (block % header_.cluster_size() != 0) {
        return absl::InvalidArgumentError(absl::StrCat("broken qcow2 image: a refcount block at offset ",
                                                       block, " begins inside a cluster"));
      }
      if (status = Add("a refcount block", block, header_.cluster_size()); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status CountL1(absl::string_view what, uint64_t offset, uint64_t entries) {
    absl::Status status = Add(what, offset, entries * 8);
    if (!status.ok()) return status;
    const auto l1 = ReadWords(image_, offset, entries);
    if (!l1.ok()) return l1.status();
    for (const uint64_t entry : *l1) {
      const std::optional<uint64_t> table = L2TableOffset(layout_, entry);
      if (!table.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat("broken qcow2 image: an entry of ", what, " is ", entry));
      }
      if (*table != 0) status = CountL2(*table);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status CountL2(uint64_t offset) {
    absl::Status status = Add("an L2 table", offset, header_.cluster_size());
    if (!status.ok()) return status;
    const auto table = ReadWords(image_, offset, header_.cluster_size() / 8);
    if (!table.ok()) return table.status();
    for (size_t i = 0; i < table->size(); i += layout_.entry_words()) {
      const uint64_t entry = (*table)[i];
      if ((entry & kCompressed) != 0) {
        const std::optional<CompressedExtent> extent = DecodeCompressed(layout_, entry);
        if (!extent.has_value()) return BrokenEntry(entry);
        status = Add("a compressed cluster", extent->offset, extent->length);
      } else if (const uint64_t host = entry & kOffsetMask; host != 0 && !layout_.external_data) {
        if (host % header_.cluster_size() != 0) return BrokenEntry(entry);
        status = Add("a cluster", host, header_.cluster_size());
      }
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  static absl::Status BrokenEntry(uint64_t entry) {
    return absl::InvalidArgumentError(absl::StrCat("broken qcow2 image: an L2 entry is ", entry));
  }

  absl::Status CountSnapshots() {
    const absl::StatusOr<std::vector<uint8_t>> bytes =
        ReadTable(image_, header_.snapshots_offset,
                  std::min(SnapshotTableBytes(header_), image_.size() - header_.snapshots_offset));
    if (!bytes.ok()) return bytes.status();
    const absl::StatusOr<std::vector<Snapshot>> snapshots =
        DecodeSnapshotTable(*bytes, header_, image_.size());
    if (!snapshots.ok()) return snapshots.status();
    absl::Status status =
        Add("the snapshot table", header_.snapshots_offset, EncodeSnapshotTable(*snapshots).size());
    for (const Snapshot& snapshot : *snapshots) {
      if (!status.ok()) break;
      status = CountL1("a snapshot's L1 table", snapshot.l1_table_offset, snapshot.l1_size);
    }
    return status;
  }

  absl::Status CountBitmaps() {
    const BitmapsExtension& bitmaps = *header_.bitmaps;
    absl::Status status = Add("the bitmap directory", bitmaps.directory_offset, bitmaps.directory_size);
    if (!status.ok()) return status;
    const auto bytes = ReadTable(image_, bitmaps.directory_offset, bitmaps.directory_size);
    if (!bytes.ok()) return bytes.status();
    const auto entries = DecodeBitmapDirectory(*bytes, header_, image_.size());
    if (!entries.ok()) return entries.status();
    for (const BitmapEntry& entry : *entries) {
      status = Add("a bitmap table", entry.table_offset, uint64_t{entry.table_size} * 8);
      if (!status.ok()) return status;
      const auto table = ReadWords(image_, entry.table_offset, entry.table_size);
      if (!table.ok()) return table.status();
      for (const uint64_t word : *table) {
        const std::optional<BitmapPart> part = DecodeBitmapPart(header_, word, image_.size());
        if (part.has_value() && part->offset != 0) {
          status = Add("a bitmap's cluster", part->offset, header_.cluster_size());
        }
        if (!status.ok()) return status;
      }
    }
    return status;
  }

  BlockDevice& image_;
  const Header& header_;
  const EntryLayout layout_;
  std::vector<uint32_t> counts_;
};

class Repair {
 public:
  Repair(BlockDevice& image, const Header& header, std::vector<uint32_t> counts)
      : image_(image), header_(header), layout_(header), counts_(std::move(counts)) {}

  absl::Status Run() {
    auto table = ReadWords(image_, header_.refcount_table_offset,
                           (uint64_t{header_.refcount_table_clusters} << header_.cluster_bits) / 8);
    if (!table.ok()) return table.status();
    table_ = *std::move(table);
    absl::Status status = CheckOverlaps();
    if (status.ok()) status = PlanBlocks();
    if (status.ok()) status = WriteBlocks();
    // A block is there before the table names it.
    if (status.ok()) status = WriteTable();
    if (status.ok()) status = MendCopiedFlags();
    return status;
  }

 private:
  uint64_t block_entries() const { return RefcountEntries(header_.cluster_size(), header_.refcount_order); }

  // What is about to be written has no other use.
  absl::Status CheckOverlaps() const {
    std::vector<uint64_t> tables = {0};
    for (const auto& [offset, bytes] :
         {std::pair{header_.l1_table_offset, uint64_t{header_.l1_size} * 8},
          std::pair{header_.refcount_table_offset,
                    uint64_t{header_.refcount_table_clusters} << header_.cluster_bits}}) {
      for (uint64_t at = offset; at < offset + bytes; at += header_.cluster_size()) tables.push_back(at);
    }
    for (const uint64_t block : table_) {
      if (block != 0) tables.push_back(block);
    }
    for (const uint64_t table : tables) {
      if (counts_[table >> header_.cluster_bits] != 1) {
        return NeedsCheck(absl::StrCat("a table at offset ", table, " lies over something else"));
      }
    }
    return absl::OkStatus();
  }

  // Every cluster that is used has a block, the new blocks' own clusters included.
  absl::Status PlanBlocks() {
    uint64_t free = 0;
    for (bool changed = true; std::exchange(changed, false);) {
      for (uint64_t cluster = 0; cluster < counts_.size(); ++cluster) {
        if (counts_[cluster] == 0) continue;
        if (counts_[cluster] > MaxRefcount(header_.refcount_order)) {
          return NeedsCheck("a cluster has more references than a refcount can say");
        }
        const uint64_t index = cluster / block_entries();
        if (index >= table_.size()) return NeedsCheck("its refcount table is too small");
        if (table_[index] != 0) continue;
        while (free < counts_.size() && counts_[free] != 0) ++free;
        if (free == counts_.size()) return NeedsCheck("it has no space for refcounts");
        counts_[free] = 1;
        table_[index] = free << header_.cluster_bits;
        new_blocks_.insert(index);
        changed = true;
      }
    }
    return absl::OkStatus();
  }

  absl::Status WriteBlocks() {
    for (size_t index = 0; index < table_.size(); ++index) {
      if (table_[index] == 0) continue;
      const uint64_t end = table_[index] + header_.cluster_size();
      if (image_.size() < end) {
        if (absl::Status status = image_.Resize(end); !status.ok()) return status;
      }
      std::vector<uint8_t> block(header_.cluster_size());
      for (uint64_t i = 0; i < block_entries(); ++i) {
        const uint64_t cluster = index * block_entries() + i;
        if (cluster >= counts_.size()) break;
        SetRefcount(absl::MakeSpan(block), header_.refcount_order, i, counts_[cluster]);
      }
      if (absl::Status status = WriteChanged(table_[index], block); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status WriteTable() {
    for (const uint64_t index : new_blocks_) {
      uint8_t entry[8];
      Store64(entry, table_[index]);
      const absl::Status status = WriteMetadata(image_, header_.refcount_table_offset + index * 8, entry);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status MendCopiedFlags() {
    auto l1 = ReadWords(image_, header_.l1_table_offset, header_.l1_size);
    if (!l1.ok()) return l1.status();
    for (uint64_t& entry : *l1) {
      const uint64_t table = entry & kOffsetMask;
      if (table == 0) continue;
      entry = WithFlag(entry, table);
      if (layout_.external_data) continue;
      auto l2 = ReadWords(image_, table, header_.cluster_size() / 8);
      if (!l2.ok()) return l2.status();
      for (size_t i = 0; i < l2->size(); i += layout_.entry_words()) {
        uint64_t& word = (*l2)[i];
        if ((word & kCompressed) != 0 || (word & kOffsetMask) == 0) continue;
        word = WithFlag(word, word & kOffsetMask);
      }
      if (absl::Status status = WriteChanged(table, ToBytes(*l2)); !status.ok()) return status;
    }
    return WriteChanged(header_.l1_table_offset, ToBytes(*l1));
  }

  uint64_t WithFlag(uint64_t entry, uint64_t offset) const {
    return counts_[offset >> header_.cluster_bits] == 1 ? entry | kCopied : entry & ~kCopied;
  }

  static std::vector<uint8_t> ToBytes(const std::vector<uint64_t>& words) {
    std::vector<uint8_t> bytes(words.size() * 8);
    for (size_t i = 0; i < words.size(); ++i) Store64(&bytes[i * 8], words[i]);
    return bytes;
  }

  absl::Status WriteChanged(uint64_t offset, const std::vector<uint8_t>& bytes) {
    const absl::StatusOr<std::vector<uint8_t>> old = ReadTable(image_, offset, bytes.size());
    if (!old.ok()) return old.status();
    if (*old == bytes) return absl::OkStatus();
    return WriteMetadata(image_, offset, bytes);
  }

  BlockDevice& image_;
  const Header& header_;
  const EntryLayout layout_;
  std::vector<uint32_t> counts_;
  std::vector<uint64_t> table_;
  std::set<uint64_t> new_blocks_;
};

}  // namespace

absl::StatusOr<std::vector<uint32_t>> CountReferences(BlockDevice& image, const Header& header) {
  ReferenceCounter counter(image, header);
  if (absl::Status status = counter.CountAll(); !status.ok()) return status;
  return counter.Take();
}

absl::Status RepairRefcounts(BlockDevice& image, Header* header) {
  absl::StatusOr<std::vector<uint32_t>> counts = CountReferences(image, *header);
  if (!counts.ok()) return NeedsCheck(counts.status().message());
  absl::Status status = Repair(image, *header, *std::move(counts)).Run();
  if (!status.ok()) return status;
  uint8_t field[8];
  Store64(field, header->incompatible_features & ~kDirty);
  status = WriteMetadata(image, kIncompatibleAt, field);
  if (status.ok()) header->incompatible_features &= ~kDirty;
  return status;
}

}  // namespace berth::qcow2
