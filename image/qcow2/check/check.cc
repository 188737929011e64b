#include "image/qcow2/check/check.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "image/io/big_endian.h"
#include "image/qcow2/check/reference_counts.h"
#include "image/qcow2/check/references.h"
#include "image/qcow2/format/cluster_entry.h"
#include "image/qcow2/format/refcount_block.h"
#include "image/qcow2/metadata_reader.h"

namespace berth::qcow2 {
namespace {

// Fields of the header.
constexpr uint64_t kRefcountTableAt = 48;  // Its offset, and behind it its clusters.
constexpr uint64_t kIncompatibleAt = 72;

// What the counts on the disk are made to be.
enum class Change : uint8_t { kNothing, kRaise, kLower };

class Check {
 public:
  Check(BlockDevice& image, const Header& header, Repair repair, ReferenceCounts counts)
      : image_(image),
        header_(header),
        repair_(repair),
        counts_(std::move(counts)),
        max_refcount_(MaxRefcount(header.refcount_order)),
        block_entries_(RefcountEntries(header.cluster_size(), header.refcount_order)) {}

  absl::StatusOr<CheckResult> Run(Progress& progress) {
    absl::Status status = CountReferences(image_, header_, progress, &counts_, &result_);
    // What no repair mends: entries of tables. They are the same afterwards.
    broken_entries_ = result_.corruptions;
    if (status.ok()) status = ReadRefcountTable();
    if (status.ok()) status = Compare(Change::kNothing);
    if (status.ok()) status = CheckCopied(/*mend=*/false);
    if (!status.ok()) return status;
    result_.total_clusters = (header_.size + header_.cluster_size() - 1) >> header_.cluster_bits;
    if (repair_ != Repair::kNone) {
      if (status = Mend(); !status.ok()) return status;
    }
    result_.image_end_offset = end_ << header_.cluster_bits;
    return std::move(result_);
  }

 private:
  absl::Status ReadRefcountTable() {
    absl::StatusOr<std::vector<uint64_t>> table =
        ReadTable(image_, header_.refcount_table_offset,
                  (uint64_t{header_.refcount_table_clusters} << header_.cluster_bits) / 8);
    if (!table.ok()) return table.status();
    table_ = *std::move(table);
    for (uint64_t& entry : table_) {
      if (entry == 0) continue;
      const uint64_t cluster = entry >> header_.cluster_bits;
      if (entry % header_.cluster_size() != 0 || cluster >= counts_.clusters() || counts_.Get(cluster) != 0) {
        // Behind it would be something else's bytes.
        ++result_.corruptions;
        Note(&result_, "an entry of the refcount table names no refcount block: ", absl::Hex(entry));
        entry = 0;
        rebuild_ = true;
        continue;
      }
      counts_.Add(cluster);
    }
    return absl::OkStatus();
  }

  // Looks at every count, or changes those that `change` says.
  absl::Status Compare(Change change) {
    std::vector<uint8_t> block(header_.cluster_size());
    const uint64_t blocks =
        std::max<uint64_t>(table_.size(), (counts_.clusters() + block_entries_ - 1) / block_entries_);
    for (uint64_t i = 0; i < blocks; ++i) {
      const bool there = i < table_.size() && table_[i] != 0;
      if (!there && i * block_entries_ >= counts_.clusters()) continue;
      std::fill(block.begin(), block.end(), uint8_t{0});
      if (there) {
        absl::Status status = ReadPadded(image_, table_[i], absl::MakeSpan(block));
        if (!status.ok()) return status;
      }
      bool changed = false;
      for (uint64_t j = 0; j < block_entries_; ++j) {
        changed |= CompareOne(block, i * block_entries_ + j, there, change);
      }
      if (changed) {
        if (absl::Status status = WriteUnflushed(image_, table_[i], block); !status.ok()) return status;
      }
    }
    return absl::OkStatus();
  }

  bool CompareOne(std::vector<uint8_t>& block, uint64_t cluster, bool there, Change change) {
    const size_t index = cluster % block_entries_;
    const uint64_t count = GetRefcount(block, header_.refcount_order, index);
    const uint64_t references = counts_.Get(cluster);
    if (count != 0 || references != 0) end_ = std::max(end_, cluster + 1);
    if (count == references) return false;
    switch (change) {
      case Change::kNothing:
        if (count < references) {
          ++result_.corruptions;
          if (!there) rebuild_ = true;
        } else {
          ++result_.leaks;
        }
        Note(&result_, "the cluster at offset ", cluster << header_.cluster_bits, " has ", references,
             " references and a count of ", count);
        return false;
      case Change::kRaise:
        if (count > references) return false;
        SetRefcount(absl::MakeSpan(block), header_.refcount_order, index,
                    std::min(references, max_refcount_));
        return true;
      case Change::kLower:
        if (count < references) return false;
        SetRefcount(absl::MakeSpan(block), header_.refcount_order, index, references);
        return true;
    }
    return false;
  }

  // The flag of the entries of the active tables: set where there is one reference, and only there.
  absl::Status CheckCopied(bool mend) {
    absl::StatusOr<std::vector<uint64_t>> l1 = ReadTable(image_, header_.l1_table_offset, header_.l1_size);
    if (!l1.ok()) return l1.status();
    const EntryLayout layout(header_);
    absl::flat_hash_set<uint64_t> seen;
    bool changed = false;
    for (uint64_t& entry : *l1) {
      const std::optional<uint64_t> table = L2TableOffset(layout, entry);
      if (!table.has_value() || *table == 0 || *table >> header_.cluster_bits >= counts_.clusters()) continue;
      changed |= CheckFlag(&entry, *table, *table, mend);
      // A broken image may name one a million times.
      if (!seen.insert(*table).second) continue;
      if (absl::Status status = CheckCopiedIn(layout, *table, mend); !status.ok()) return status;
    }
    return changed ? WriteTable(header_.l1_table_offset, *l1) : absl::OkStatus();
  }

  absl::Status CheckCopiedIn(const EntryLayout& layout, uint64_t table, bool mend) {
    absl::StatusOr<std::vector<uint64_t>> words = ReadTable(image_, table, header_.cluster_size() / 8);
    if (!words.ok()) return words.status();
    bool changed = false;
    for (size_t i = 0; i < words->size(); i += layout.entry_words()) {
      uint64_t& entry = (*words)[i];
      const uint64_t offset = entry & kOffsetMask;
      // An external data file's clusters have no counts.
      if ((entry & kCompressed) != 0 || offset == 0 || layout.external_data) continue;
      if (offset % header_.cluster_size() != 0 || offset >> header_.cluster_bits >= counts_.clusters())
        continue;
      changed |= CheckFlag(&entry, offset, table, mend);
    }
    return changed ? WriteTable(table, *words) : absl::OkStatus();
  }

  bool CheckFlag(uint64_t* entry, uint64_t offset, uint64_t table, bool mend) {
    const bool once = counts_.Get(offset >> header_.cluster_bits) == 1;
    if (((*entry & kCopied) != 0) == once) return false;
    if (mend) {
      *entry ^= kCopied;
      return true;
    }
    ++result_.corruptions;
    Note(&result_, "the cluster at offset ", offset, ", which the table at offset ", table, " names, is ",
         once ? "not marked as used once" : "marked as used once", " and has ",
         counts_.Get(offset >> header_.cluster_bits), " references");
    return false;
  }

  absl::Status WriteTable(uint64_t offset, const std::vector<uint64_t>& table) {
    std::vector<uint8_t> bytes(table.size() * 8);
    for (size_t i = 0; i < table.size(); ++i) Store64(&bytes[i * 8], table[i]);
    return WriteUnflushed(image_, offset, bytes);
  }

  absl::Status Mend() {
    if (absl::Status status = CompleteLastCluster(); !status.ok()) return status;
    bool exact = false;
    if (repair_ == Repair::kAll) {
      absl::Status status = rebuild_ ? Rebuild() : Compare(Change::kRaise);
      if (status.ok()) status = FlushFile(image_);
      // Only now: the flag lets a writer change the cluster in place.
      if (status.ok()) status = CheckCopied(/*mend=*/true);
      if (status.ok()) status = FlushFile(image_);
      if (!status.ok()) return status;
      exact = rebuild_;
      CountWhatIsLeft();
    }
    // Beside entries that stay broken, a count that is too high may be what protects data.
    if (!rebuild_ && broken_entries_ == 0) {
      absl::Status status = Compare(Change::kLower);
      if (status.ok()) status = FlushFile(image_);
      if (!status.ok()) return status;
      exact = true;
    }
    if (exact) {
      result_.leaks_fixed = std::exchange(result_.leaks, 0);
      end_ = counts_.clusters();
      while (end_ > 0 && counts_.Get(end_ - 1) == 0) --end_;
    }
    return repair_ == Repair::kAll && result_.corruptions == 0 ? ClearBits() : absl::OkStatus();
  }

  // A table in it can be written as a whole then. One more cluster than the file has may be referred to.
  absl::Status CompleteLastCluster() {
    const bool one_more = counts_.Get(counts_.clusters() - 1) != 0;
    const uint64_t whole = (counts_.clusters() - (one_more ? 0 : 1)) << header_.cluster_bits;
    return image_.size() == whole ? absl::OkStatus() : image_.Resize(whole);
  }

  // Broken entries, and counts that their bits cannot hold.
  void CountWhatIsLeft() {
    uint64_t left = broken_entries_;
    for (uint64_t cluster = 0; max_refcount_ < kNeverFull && cluster < counts_.clusters(); ++cluster) {
      if (counts_.Get(cluster) > max_refcount_) ++left;
    }
    result_.corruptions_fixed = result_.corruptions - std::min(left, result_.corruptions);
    result_.corruptions = left;
  }

  // A refcount table and blocks in new clusters behind all that is in use. The old ones are free afterwards.
  absl::Status Rebuild() {
    const uint64_t first = image_.size() >> header_.cluster_bits;
    ForgetOldStructure();
    uint64_t blocks = 0;
    uint64_t table_clusters = 0;
    // They count themselves too.
    for (uint64_t clusters = 0; clusters != first + blocks + table_clusters;) {
      clusters = first + blocks + table_clusters;
      blocks = (clusters + block_entries_ - 1) / block_entries_;
      table_clusters = (blocks * 8 + header_.cluster_size() - 1) >> header_.cluster_bits;
    }
    if (table_clusters << header_.cluster_bits > kMaxRefcountTableBytes) {
      return absl::FailedPreconditionError("the image is too large for a refcount table; convert it");
    }
    absl::Status status = counts_.Grow(first + blocks + table_clusters);
    if (status.ok()) status = image_.Resize((first + blocks + table_clusters) << header_.cluster_bits);
    if (!status.ok()) return status;
    for (uint64_t i = first; i < first + blocks + table_clusters; ++i) counts_.Add(i);
    table_.assign((table_clusters << header_.cluster_bits) / 8, 0);
    for (uint64_t i = 0; i < blocks; ++i) table_[i] = (first + i) << header_.cluster_bits;
    if (status = Compare(Change::kRaise); !status.ok()) return status;
    const uint64_t offset = (first + blocks) << header_.cluster_bits;
    status = WriteTable(offset, table_);
    if (status.ok()) status = FlushFile(image_);
    if (!status.ok()) return status;
    // One sector: the old structure or the new one.
    uint8_t fields[12];
    Store64(&fields[0], offset);
    Store32(&fields[8], static_cast<uint32_t>(table_clusters));
    return WriteMetadata(image_, kRefcountTableAt, fields);
  }

  // Whatever else refers to those clusters goes on to.
  void ForgetOldStructure() {
    const uint64_t table = header_.refcount_table_offset >> header_.cluster_bits;
    for (uint64_t i = 0; i < header_.refcount_table_clusters; ++i) counts_.Remove(table + i);
    for (const uint64_t entry : table_) {
      if (entry != 0) counts_.Remove(entry >> header_.cluster_bits);
    }
  }

  absl::Status ClearBits() {
    if (header_.version < 3) return absl::OkStatus();
    const uint64_t cleared = header_.incompatible_features & ~(kDirty | kCorrupt);
    if (cleared == header_.incompatible_features) return absl::OkStatus();
    uint8_t field[8];
    Store64(field, cleared);
    return WriteMetadata(image_, kIncompatibleAt, field);
  }

  // Counts that wide are never full.
  static constexpr uint64_t kNeverFull = 0xffffffff;

  BlockDevice& image_;
  const Header& header_;
  const Repair repair_;
  ReferenceCounts counts_;
  const uint64_t max_refcount_;
  const uint64_t block_entries_;
  std::vector<uint64_t> table_;  // Offsets of refcount blocks; 0 where there is none that is one.
  bool rebuild_ = false;         // A refcount block is missing.
  uint64_t broken_entries_ = 0;
  uint64_t end_ = 0;  // Clusters up to the last with a count or a reference.
  CheckResult result_;
};

}  // namespace

absl::StatusOr<CheckResult> CheckImage(BlockDevice& image, const Header& header, Repair repair,
                                       Progress& progress) {
  absl::StatusOr<ReferenceCounts> counts =
      // A cut can leave references to a cluster that the file has not grown to.
      ReferenceCounts::Create(((image.size() + header.cluster_size() - 1) >> header.cluster_bits) + 1);
  if (!counts.ok()) return counts.status();
  return Check(image, header, repair, *std::move(counts)).Run(progress);
}

}  // namespace berth::qcow2
