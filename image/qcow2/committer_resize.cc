// What the committer does when the disk gets another size. docs/qcow2.md, "A new size", numbers the steps.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "image/io/big_endian.h"
#include "image/qcow2/committer.h"

namespace berth::qcow2 {
namespace {

constexpr uint64_t kSizeAt = 24;
constexpr uint64_t kL1SizeAt = 36;  // And l1_table_offset behind it, in one sector.
constexpr uint64_t kCopyBytes = uint64_t{1} << 20;
// Clusters for refcount blocks and a larger refcount table, beside the new L1 table.
constexpr uint64_t kSpareClusters = 16;

}  // namespace

Task<IoResult> Committer::GrowL1(Reactor& reactor, BlockChannel& channel, uint64_t entries) {
  Turns::Turn turn(turns_, reactor);
  co_await turn;
  if (map_.failed()) co_return IoResult::Error(EIO);
  if (entries <= l1_entries_) co_return IoResult::Ok();
  const uint64_t clusters = (entries * 8 + cluster_size() - 1) >> cluster_bits_;
  // A full disk is noticed while nothing has changed.
  IoResult result =
      co_await Grow(reactor, (map_.end_cluster() + 2 * clusters + kSpareClusters) << cluster_bits_);
  if (!result.ok()) co_return result;
  const uint64_t first = map_.TakeMetadata(clusters);
  if (first == 0) co_return IoResult::Error(ENOSPC);
  result = co_await MoveL1(reactor, channel, first, clusters);
  if (!result.ok()) {
    map_.Fail();
    co_return result;
  }
  map_.GrowL1(l1_entries_);
  co_return result;
}

Task<IoResult> Committer::MoveL1(Reactor& reactor, BlockChannel& channel, uint64_t first, uint64_t clusters) {
  std::vector<uint64_t> taken;
  for (uint64_t i = 0; i < clusters; ++i) taken.push_back(first + i);
  if (!PlanBlocks(&taken)) co_return IoResult::Error(ENOSPC);
  IoResult result = co_await Grow(reactor, map_.end_cluster() << cluster_bits_);
  if (result.ok()) result = co_await WriteBlocks(channel);
  if (result.ok()) result = co_await ChangeRefcounts(channel, std::move(taken), true, nullptr);
  if (result.ok()) result = co_await CopyL1(channel, first << cluster_bits_, clusters << cluster_bits_);
  if (result.ok()) result = co_await channel.Flush();
  if (result.ok() && (table_moved_ || !new_blocks_.empty())) {
    result = co_await WriteTable(channel);
    if (result.ok()) result = co_await channel.Flush();
  }
  if (!result.ok()) co_return result;
  const uint64_t entries = std::min(clusters << cluster_bits_, kMaxL1Bytes) / 8;
  uint8_t fields[12];
  Store32(fields, static_cast<uint32_t>(entries));
  Store64(fields + 4, first << cluster_bits_);
  result = co_await channel.Write(kL1SizeAt, fields, WriteFlags::kNone);
  if (result.ok()) result = co_await channel.Flush();
  if (!result.ok()) co_return result;
  const uint64_t old_clusters = (l1_entries_ * 8 + cluster_size() - 1) >> cluster_bits_;
  map_.GiveBackMetadata(l1_table_offset_ >> cluster_bits_, old_clusters);
  l1_table_offset_ = first << cluster_bits_;
  l1_entries_ = entries;
  co_return result;
}

// The table as it is on the disk: what was changed in memory since comes with the next commit.
Task<IoResult> Committer::CopyL1(BlockChannel& channel, uint64_t to, uint64_t bytes) {
  const uint64_t old_bytes = l1_entries_ * 8;
  std::vector<uint8_t> chunk(std::min(kCopyBytes, bytes));
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t length = std::min<uint64_t>(chunk.size(), bytes - done);
    std::fill(chunk.begin(), chunk.end(), 0);
    IoResult result;
    if (done < old_bytes) {
      const uint64_t there = std::min(length, old_bytes - done);
      result = co_await channel.Read(l1_table_offset_ + done, absl::MakeSpan(chunk).subspan(0, there));
    }
    if (result.ok()) {
      result =
          co_await channel.Write(to + done, absl::MakeConstSpan(chunk).subspan(0, length), WriteFlags::kNone);
    }
    if (!result.ok()) co_return result;
    done += length;
  }
  co_return IoResult::Ok();
}

Task<IoResult> Committer::WriteDiskSize(Reactor& reactor, BlockChannel& channel, uint64_t size) {
  Turns::Turn turn(turns_, reactor);
  co_await turn;
  if (map_.failed()) co_return IoResult::Error(EIO);
  uint8_t field[8];
  Store64(field, size);
  IoResult result = co_await channel.Write(kSizeAt, field, WriteFlags::kNone);
  if (result.ok()) result = co_await channel.Flush();
  if (!result.ok()) map_.Fail();
  co_return result;
}

Task<IoResult> Committer::DropUnusedBlocks(Reactor& reactor, BlockChannel& channel, size_t* dropped) {
  Turns::Turn turn(turns_, reactor);
  co_await turn;
  if (map_.failed()) co_return IoResult::Error(EIO);
  std::vector<uint64_t> inside;  // Of blocks that count themselves: their refcount goes with them.
  std::vector<uint64_t> outside;
  IoResult result;
  // The first block counts the header.
  for (size_t i = 1; result.ok() && i < table_.size(); ++i) {
    const uint64_t cluster = table_[i] >> cluster_bits_;
    const uint64_t first = i * block_entries();
    if (cluster == 0 || !map_.NothingElseTaken(first, block_entries(), cluster)) continue;
    table_[i] = 0;
    const uint8_t none[8] = {};
    result = co_await channel.Write(table_offset_ + i * 8, none, WriteFlags::kNone);
    (cluster / block_entries() == i ? inside : outside).push_back(cluster);
  }
  *dropped = inside.size() + outside.size();
  if (result.ok() && *dropped > 0) result = co_await channel.Flush();
  if (!result.ok()) {
    map_.Fail();
    co_return result;
  }
  for (const uint64_t cluster : inside) map_.FreeMetadata(cluster);
  for (const uint64_t cluster : outside) map_.GiveBackMetadata(cluster, 1);
  co_return result;
}

Task<void> Committer::CutFreeTail(Reactor& reactor) {
  if (!file_.traits().resizable) co_return;
  Turns::Turn turn(growing_, reactor);
  co_await turn;
  // Who takes clusters from here on asks Grow() for them, and waits there for this turn's end.
  cutting_ = true;
  const uint64_t end = map_.TrimEnd() << cluster_bits_;
  const auto cut = [file = &file_, end] { return file->size() <= end || file->Resize(end).ok(); };
  (void)co_await GrowthPool().Run(reactor, cut);
  cutting_ = false;
}

}  // namespace berth::qcow2
