#include "image/qcow2/committer.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "image/io/big_endian.h"
#include "image/qcow2/format/refcount_block.h"

namespace berth::qcow2 {
namespace {

constexpr uint64_t kPieceBytes = 4096;
constexpr uint64_t kSmallestGrowth = uint64_t{1} << 20;
constexpr uint64_t kLargestGrowth = uint64_t{256} << 20;
constexpr int kThreads = 2;  // For resizes of files.

std::vector<uint8_t> ToBytes(absl::Span<const uint64_t> words) {
  std::vector<uint8_t> bytes(words.size() * 8);
  for (size_t i = 0; i < words.size(); ++i) Store64(&bytes[i * 8], words[i]);
  return bytes;
}

Task<IoResult> WriteSlices(BlockChannel& channel, const std::vector<WriteMap::SliceImage>& slices) {
  for (const WriteMap::SliceImage& slice : slices) {
    const std::vector<uint8_t> bytes = ToBytes(slice.words);
    const IoResult result = co_await channel.Write(slice.file_offset, bytes, WriteFlags::kNone);
    if (!result.ok()) co_return result;
  }
  co_return IoResult::Ok();
}

}  // namespace

BlockingPool& Committer::GrowthPool() {
  static BlockingPool& pool = *new BlockingPool(kThreads);
  return pool;
}

Task<IoResult> Committer::Grow(Reactor& reactor, uint64_t bytes) {
  if (!cutting_ && file_.size() >= bytes) co_return IoResult::Ok();
  if (!file_.traits().resizable) co_return IoResult::Error(ENOSPC);
  Turns::Turn turn(growing_, reactor);
  co_await turn;
  const uint64_t size = file_.size();
  if (size >= bytes) co_return IoResult::Ok();
  // In steps, as each one is a journal transaction of the file system.
  const uint64_t step = std::clamp(size / 8, kSmallestGrowth, kLargestGrowth);
  const uint64_t wanted = (std::max(bytes, size + step) + cluster_size() - 1) >> cluster_bits_
                                                                                     << cluster_bits_;
  const auto grow = [file = &file_, wanted, bytes] {
    return file->Resize(wanted).ok() || file->Resize(bytes).ok();
  };
  const bool grown = co_await GrowthPool().Run(reactor, grow);
  co_return grown ? IoResult::Ok() : IoResult::Error(ENOSPC);
}

Task<IoResult> Committer::Commit(Reactor& reactor, BlockChannel& channel, BlockChannel* data) {
  uint64_t needed;
  {
    MutexLock lock(&mutex_);
    needed = begun_ + 1;
  }
  Turns::Turn turn(turns_, reactor);
  co_await turn;
  uint64_t mine;
  {
    MutexLock lock(&mutex_);
    if (ended_ >= needed) co_return IoResult::Ok();
    mine = ++begun_;
  }
  if (map_.failed()) co_return IoResult::Error(EIO);
  const IoResult result = co_await CommitBatch(reactor, channel, data);
  if (result.ok()) {
    MutexLock lock(&mutex_);
    ended_ = mine;
  } else {
    map_.Fail();
  }
  co_return result;
}

Task<IoResult> Committer::CommitBatch(Reactor& reactor, BlockChannel& channel, BlockChannel* data) {
  WriteMap::Batch batch = map_.TakeBatch();
  IoResult result;
  if (!batch.taken.empty()) {
    if (!PlanBlocks(&batch.taken)) co_return IoResult::Error(ENOSPC);
    result = co_await Grow(reactor, map_.end_cluster() << cluster_bits_);
    if (result.ok()) result = co_await WriteBlocks(channel);
    if (result.ok()) result = co_await ChangeRefcounts(channel, std::move(batch.taken), true, nullptr);
  }
  if (result.ok()) result = co_await WriteSlices(channel, batch.new_tables);
  if (result.ok() && (table_moved_ || !new_blocks_.empty())) {
    result = co_await channel.Flush();
    if (result.ok()) result = co_await WriteTable(channel);
  }
  if (result.ok() && data != nullptr) result = co_await data->Flush();
  if (result.ok()) result = co_await channel.Flush();
  if (result.ok() && (!batch.slices.empty() || !batch.l1.empty())) {
    result = co_await WriteReferences(channel, batch);
    if (result.ok()) result = co_await channel.Flush();
  }
  std::vector<uint64_t> unused;
  if (result.ok()) result = co_await ChangeRefcounts(channel, std::move(batch.released), false, &unused);
  if (!result.ok()) co_return result;
  map_.Committed(batch.epoch, std::move(unused));
  co_await GiveSpaceBack(channel, std::move(batch.unused));
  co_return result;
}

// Sees to it that every cluster in `taken` has a refcount block, new blocks' own clusters included.
bool Committer::PlanBlocks(std::vector<uint64_t>* taken) {
  for (size_t i = 0; i < taken->size(); ++i) {
    const uint64_t index = (*taken)[i] / block_entries();
    if (index >= table_.size() && !PlanTable(index + 1, taken)) return false;
    if (table_[index] != 0) continue;
    const uint64_t block = map_.TakeMetadata(1);
    if (block == 0) return false;
    table_[index] = block << cluster_bits_;
    new_blocks_.insert(index);
    taken->push_back(block);
  }
  return true;
}

bool Committer::PlanTable(uint64_t entries, std::vector<uint64_t>* taken) {
  const uint64_t a_cluster = cluster_size() / 8;
  // With space for its own clusters and blocks, and so that it does not move again soon.
  const uint64_t clusters = (entries + entries / 2 + 2 * a_cluster - 1) / a_cluster;
  if (clusters << cluster_bits_ > kMaxRefcountTableBytes) return false;
  const uint64_t first = map_.TakeMetadata(clusters);
  if (first == 0) return false;
  if (!table_moved_) {
    old_table_ = table_offset_ >> cluster_bits_;
    old_table_clusters_ = table_.size() / a_cluster;
  } else {
    map_.GiveBackMetadata(table_offset_ >> cluster_bits_, table_.size() / a_cluster);
  }
  table_moved_ = true;
  table_offset_ = first << cluster_bits_;
  table_.resize(clusters * a_cluster);
  for (uint64_t i = 0; i < clusters; ++i) taken->push_back(first + i);
  return true;
}

Task<IoResult> Committer::WriteBlocks(BlockChannel& channel) {
  const std::vector<uint8_t> zeroes(cluster_size());
  for (const uint64_t index : new_blocks_) {
    const IoResult result = co_await channel.Write(table_[index], zeroes, WriteFlags::kNone);
    if (!result.ok()) co_return result;
  }
  co_return IoResult::Ok();
}

Task<IoResult> Committer::WriteTable(BlockChannel& channel) {
  IoResult result;
  if (!table_moved_) {
    for (const uint64_t index : new_blocks_) {
      uint8_t entry[8];
      Store64(entry, table_[index]);
      result = co_await channel.Write(table_offset_ + index * 8, entry, WriteFlags::kNone);
      if (!result.ok()) co_return result;
    }
    new_blocks_.clear();
    co_return result;
  }
  const std::vector<uint8_t> table = ToBytes(table_);
  result = co_await channel.Write(table_offset_, table, WriteFlags::kNone);
  if (result.ok()) result = co_await channel.Flush();
  if (!result.ok()) co_return result;
  uint8_t fields[12];  // refcount_table_offset and refcount_table_clusters
  Store64(fields, table_offset_);
  Store32(fields + 8, static_cast<uint32_t>(table.size() >> cluster_bits_));
  result = co_await channel.Write(48, fields, WriteFlags::kNone);
  if (!result.ok()) co_return result;
  new_blocks_.clear();
  table_moved_ = false;
  map_.GiveBackMetadata(old_table_, old_table_clusters_);
  co_return result;
}

Task<IoResult> Committer::ChangeRefcounts(BlockChannel& channel, std::vector<uint64_t> clusters, bool add,
                                          std::vector<uint64_t>* unused) {
  std::sort(clusters.begin(), clusters.end());
  const uint64_t piece_bytes = std::min(kPieceBytes, cluster_size());
  const uint64_t piece_entries = RefcountEntries(piece_bytes, order_);
  std::vector<uint8_t> piece(piece_bytes);
  for (size_t i = 0; i < clusters.size();) {
    const uint64_t number = clusters[i] / piece_entries;
    const uint64_t index = clusters[i] / block_entries();
    if (index >= table_.size() || table_[index] == 0) co_return IoResult::Error(EIO);
    const uint64_t offset = table_[index] + number % (cluster_size() / piece_bytes) * piece_bytes;
    IoResult result = co_await channel.Read(offset, absl::MakeSpan(piece));
    if (!result.ok()) co_return result;
    for (; i < clusters.size() && clusters[i] / piece_entries == number; ++i) {
      const size_t entry = clusters[i] % piece_entries;
      uint64_t value = GetRefcount(piece, order_, entry);
      // What was free has no references, what is released has one; else the image is broken.
      if (add ? value != 0 : value == 0) co_return IoResult::Error(EIO);
      value = add ? 1 : value - 1;
      SetRefcount(absl::MakeSpan(piece), order_, entry, value);
      if (value == 0 && unused != nullptr) unused->push_back(clusters[i]);
    }
    result = co_await channel.Write(offset, piece, WriteFlags::kNone);
    if (!result.ok()) co_return result;
  }
  co_return IoResult::Ok();
}

// Best effort: what fails keeps its space, and is as free as the rest.
Task<void> Committer::GiveSpaceBack(BlockChannel& channel, std::vector<uint64_t> clusters) {
  std::sort(clusters.begin(), clusters.end());
  for (size_t i = 0; i < clusters.size();) {
    size_t count = 1;
    while (i + count < clusters.size() && clusters[i + count] == clusters[i] + count) ++count;
    const uint64_t begin = clusters[i] << cluster_bits_;
    const uint64_t end = std::min((clusters[i] + count) << cluster_bits_, file_.size());
    if (begin < end) (void)co_await channel.Discard(begin, end - begin);
    i += count;
  }
  map_.Free(clusters);
}

Task<IoResult> Committer::WriteReferences(BlockChannel& channel, const WriteMap::Batch& batch) {
  IoResult result = co_await WriteSlices(channel, batch.slices);
  for (const auto& [index, entry] : batch.l1) {
    if (!result.ok()) break;
    uint8_t bytes[8];
    Store64(bytes, entry);
    result = co_await channel.Write(l1_table_offset_ + index * 8, bytes, WriteFlags::kNone);
  }
  co_return result;
}

}  // namespace berth::qcow2
