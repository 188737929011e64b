#include "image/qcow2/open_for_writing.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "image/io/big_endian.h"
#include "image/qcow2/format/cluster_entry.h"
#include "image/qcow2/format/refcount_block.h"
#include "image/qcow2/metadata_reader.h"

namespace berth::qcow2 {
namespace {

constexpr uint64_t kAutoclearAt = 88;
// Clusters behind the end of the file that may be in use, beside as many as the file has.
constexpr uint64_t kMostBehindEnd = 1 << 16;

absl::Status CheckFeatures(const Header& header) {
  if ((header.incompatible_features & kCorrupt) != 0) {
    return absl::FailedPreconditionError(
        "the image is marked as corrupt and may only be read; repair it with berthctl image check "
        "--repair=all");
  }
  return absl::OkStatus();
}

absl::Status Overlap(absl::string_view what, uint64_t offset) {
  return absl::InvalidArgumentError(
      absl::StrCat("broken qcow2 image: ", what, " at offset ", offset,
                   " lies over other metadata, behind the end of the file, or "
                   "in a cluster that counts as free; it may only "
                   "be read; repair it with berthctl image check --repair=all"));
}

class Preparation {
 public:
  Preparation(BlockDevice& image, const Header& header)
      : image_(image),
        header_(header),
        clusters_((image.size() + header.cluster_size() - 1) >> header.cluster_bits),
        state_{ClusterAllocator((kOffsetMask >> header.cluster_bits) + 1), {}, {}} {}

  absl::Status ReadRefcounts() {
    std::vector<uint8_t> bytes(uint64_t{header_.refcount_table_clusters} << header_.cluster_bits);
    absl::Status status = ReadMetadata(image_, header_.refcount_table_offset, absl::MakeSpan(bytes));
    if (!status.ok()) return status;
    std::vector<uint64_t>& table = state_.refcount_table;
    table.resize(bytes.size() / 8);
    for (size_t i = 0; i < table.size(); ++i) table[i] = Load64(&bytes[i * 8]);
    std::vector<uint8_t> block(header_.cluster_size());
    const uint64_t entries = RefcountEntries(block.size(), header_.refcount_order);
    for (size_t i = 0; i < table.size(); ++i) {
      if (table[i] == 0) continue;
      if (!Claim(table[i])) return Overlap("a refcount block", table[i]);
      status = ReadMetadata(image_, table[i], absl::MakeSpan(block));
      if (!status.ok()) return status;
      for (size_t j = 0; j < entries; ++j) {
        if (GetRefcount(block, header_.refcount_order, j) == 0) continue;
        // A crash can leave some behind the end of the file; many would be a bitmap that no file explains.
        const uint64_t cluster = i * entries + j;
        if (cluster > 2 * clusters_ + kMostBehindEnd) {
          return Overlap("what a refcount block has", cluster << header_.cluster_bits);
        }
        state_.allocator.MarkTaken(cluster);
      }
    }
    return absl::OkStatus();
  }

  absl::Status ClaimTables(const std::vector<uint64_t>& l1, const std::vector<uint64_t>& tables) {
    Claim(0);
    for (const auto& [what, offset, bytes] :
         {std::make_tuple("the L1 table", header_.l1_table_offset, uint64_t{header_.l1_size} * 8),
          std::make_tuple("the refcount table", header_.refcount_table_offset,
                          uint64_t{header_.refcount_table_clusters} << header_.cluster_bits)}) {
      for (uint64_t at = offset; at < offset + bytes; at += header_.cluster_size()) {
        if (!Claim(at)) return Overlap(what, at);
      }
    }
    if (header_.encryption.has_value()) {
      const EncryptionHeader& place = *header_.encryption;
      for (uint64_t at = place.offset; at < place.offset + place.length; at += header_.cluster_size()) {
        if (!Claim(at)) return Overlap("the encryption header", at);
      }
    }
    for (const uint64_t table : tables) {
      if (!Claim(table)) return Overlap("a bitmap's cluster", table);
    }
    for (const uint64_t cluster : claimed_) {
      state_.metadata_clusters.push_back(cluster);
      if (!state_.allocator.IsTaken(cluster)) return Overlap("a table", cluster << header_.cluster_bits);
    }
    const EntryLayout layout(header_);
    for (const uint64_t entry : l1) {
      const std::optional<uint64_t> table = L2TableOffset(layout, entry);
      if (table == 0u) continue;
      if (!table.has_value() || !Claim(*table) || !state_.allocator.IsTaken(*table >> header_.cluster_bits)) {
        return Overlap("an L2 table", entry & kOffsetMask);
      }
    }
    return absl::OkStatus();
  }

  WritableState Take() { return std::move(state_); }

 private:
  // False where the cluster at `offset` is not one, or has another use.
  bool Claim(uint64_t offset) {
    return offset % header_.cluster_size() == 0 && offset >> header_.cluster_bits < clusters_ &&
           claimed_.insert(offset >> header_.cluster_bits).second;
  }

  BlockDevice& image_;
  const Header& header_;
  const uint64_t clusters_;
  absl::flat_hash_set<uint64_t> claimed_;
  WritableState state_;
};

}  // namespace

absl::StatusOr<WritableState> PrepareForWriting(BlockDevice& image, const Header& header,
                                                const std::vector<uint64_t>& l1,
                                                const std::vector<uint64_t>& tables, uint64_t maintained) {
  absl::Status status = CheckFeatures(header);
  if (!status.ok()) return status;
  Preparation preparation(image, header);
  status = preparation.ReadRefcounts();
  if (status.ok()) status = preparation.ClaimTables(l1, tables);
  const uint64_t autoclear = AutoclearForWriting(header.autoclear_features, maintained);
  if (status.ok() && autoclear != header.autoclear_features) {
    uint8_t field[8];
    Store64(field, autoclear);
    status = WriteMetadata(image, kAutoclearAt, field);
  }
  if (!status.ok()) return status;
  return preparation.Take();
}

}  // namespace berth::qcow2
