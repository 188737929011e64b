#include "image/qcow2/bitmap_set.h"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/big_endian.h"
#include "image/qcow2/bitmaps_extension.h"
#include "image/qcow2/metadata_reader.h"

namespace berth::qcow2 {
namespace {

std::vector<uint8_t> ToBytes(const std::vector<uint64_t>& words) {
  std::vector<uint8_t> bytes(words.size() * 8);
  for (size_t i = 0; i < words.size(); ++i) Store64(&bytes[i * 8], words[i]);
  return bytes;
}

absl::StatusOr<std::vector<uint8_t>> Read(BlockDevice& image, uint64_t offset, uint64_t bytes) {
  std::vector<uint8_t> out(bytes);
  if (bytes == 0) return out;
  if (absl::Status status = ReadMetadata(image, offset, absl::MakeSpan(out)); !status.ok()) return status;
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BitmapSet>> BitmapSet::Load(BlockDevice& image, const Header& header) {
  std::unique_ptr<BitmapSet> set(new BitmapSet(header));
  if (!header.bitmaps.has_value() || (header.autoclear_features & kBitmapsConsistent) == 0) return set;
  const BitmapsExtension& place = *header.bitmaps;
  if (place.directory_size > kMaxBitmapDirectoryBytes) {
    return absl::InvalidArgumentError(absl::StrCat("broken qcow2 image: bitmap_directory_size is ",
                                                   place.directory_size, "; at most ",
                                                   kMaxBitmapDirectoryBytes, " are possible"));
  }
  const auto directory = Read(image, place.directory_offset, place.directory_size);
  if (!directory.ok()) return directory.status();
  auto entries = DecodeBitmapDirectory(*directory, header, image.size());
  if (!entries.ok()) return entries.status();
  for (uint64_t at = 0; at < place.directory_size; at += header.cluster_size()) {
    set->clusters_.push_back(place.directory_offset + at);
  }
  set->directory_offset_ = place.directory_offset;
  set->directory_ = *directory;
  uint64_t at = place.directory_offset;
  uint64_t bytes = 0;
  MutexLock lock(&set->mutex_);
  for (BitmapEntry& entry : *entries) {
    auto stored = std::make_unique<Stored>();
    stored->flags_offset = at + kBitmapFlagsAt;
    at += entry.bytes();
    stored->entry = std::move(entry);
    if (absl::Status status = set->LoadTable(image, header, stored.get()); !status.ok()) return status;
    if (!stored->entry.in_use() && stored->entry.understood()) {
      bytes += BitmapBits(header.size, stored->entry.granularity_bits) / 8;
      if (bytes > kMaxBitmapBytes) {
        return absl::ResourceExhaustedError(
            absl::StrCat("the image's dirty bitmaps take more than ", kMaxBitmapBytes,
                         " bytes of memory; make coarser ones with qemu-img bitmap"));
      }
      if (absl::Status status = set->LoadContent(image, stored.get()); !status.ok()) return status;
    }
    set->bitmaps_.push_back(std::move(stored));
  }
  return set;
}

absl::Status BitmapSet::LoadTable(BlockDevice& image, const Header& header, Stored* stored) {
  const BitmapEntry& entry = stored->entry;
  const auto bytes = Read(image, entry.table_offset, uint64_t{entry.table_size} * 8);
  if (!bytes.ok()) return bytes.status();
  for (uint64_t at = 0; at < bytes->size(); at += header.cluster_size()) {
    clusters_.push_back(entry.table_offset + at);
  }
  for (size_t i = 0; i < bytes->size(); i += 8) {
    const std::optional<BitmapPart> part = DecodeBitmapPart(header, Load64(&(*bytes)[i]), image.size());
    // What was not closed is not used.
    if (!part.has_value() && !entry.in_use()) {
      return absl::InvalidArgumentError(absl::StrCat("broken qcow2 image: entry ", i / 8,
                                                     " of the table of the bitmap \"", entry.name, "\" is ",
                                                     Load64(&(*bytes)[i])));
    }
    const BitmapPart known = part.value_or(BitmapPart{});
    stored->table.push_back(known.offset != 0 ? known.offset : known.all_ones ? 1 : 0);
    if (known.offset != 0) clusters_.push_back(known.offset);
  }
  return absl::OkStatus();
}

absl::Status BitmapSet::LoadContent(BlockDevice& image, Stored* stored) {
  const BitmapEntry& entry = stored->entry;
  auto bitmap =
      std::make_shared<DirtyBitmap>(entry.name, entry.granularity_bits, disk_size_, entry.enabled());
  const uint64_t cluster_size = uint64_t{1} << cluster_bits_;
  for (size_t i = 0; i < stored->table.size(); ++i) {
    std::vector<uint8_t> part(cluster_size, stored->table[i] == 1 ? 0xff : 0);
    if (stored->table[i] > 1) {
      // The file may end inside of it.
      const uint64_t there = std::min(cluster_size, image.size() - stored->table[i]);
      const absl::Status status =
          ReadMetadata(image, stored->table[i], absl::MakeSpan(part).subspan(0, there));
      if (!status.ok()) return status;
    }
    if (stored->table[i] != 0) bitmap->SetBytes(i * cluster_size, part);
  }
  stored->bitmap = std::move(bitmap);
  stored->context = DirtyBitmapContext(stored->bitmap);
  return absl::OkStatus();
}

absl::Status BitmapSet::Mark(BlockDevice& image, Stored* stored) {
  if (stored->marked || stored->flags_offset == 0) return absl::OkStatus();
  uint8_t flags[4];
  Store32(flags, stored->entry.flags | kBitmapInUse);
  const absl::Status status = WriteMetadata(image, stored->flags_offset, flags);
  if (status.ok()) stored->marked = true;
  return status;
}

absl::Status BitmapSet::MarkInUse(BlockDevice& image) {
  MutexLock lock(&mutex_);
  for (const std::unique_ptr<Stored>& stored : bitmaps_) {
    // One that has to follow changes and is not understood cannot be trusted from now on.
    if (!stored->entry.enabled() || stored->entry.in_use()) continue;
    if (absl::Status status = Mark(image, stored.get()); !status.ok()) return status;
    stored->changed = true;
    if (stored->bitmap != nullptr) follows_.store(true);
  }
  return absl::OkStatus();
}

void BitmapSet::MarkDirty(uint64_t offset, uint64_t length) {
  MutexLock lock(&mutex_);
  for (const std::unique_ptr<Stored>& stored : bitmaps_) {
    if (stored->bitmap != nullptr && stored->bitmap->enabled()) stored->bitmap->MarkDirty(offset, length);
  }
}

std::vector<std::shared_ptr<StatusContext>> BitmapSet::contexts() const {
  std::vector<std::shared_ptr<StatusContext>> contexts;
  MutexLock lock(&mutex_);
  for (const std::unique_ptr<Stored>& stored : bitmaps_) {
    if (stored->context != nullptr) contexts.push_back(stored->context);
  }
  return contexts;
}

BitmapSet::Stored* BitmapSet::FindTrusted(const std::string& name) {
  for (const std::unique_ptr<Stored>& stored : bitmaps_) {
    if (stored->entry.name == name && stored->bitmap != nullptr) return stored.get();
  }
  return nullptr;
}

absl::Status BitmapSet::Clear(const std::string& name) {
  MutexLock lock(&mutex_);
  Stored* const stored = FindTrusted(name);
  if (stored == nullptr) return absl::NotFoundError(absl::StrCat("the image has no bitmap \"", name, "\""));
  stored->bitmap->Clear();
  stored->changed = true;
  return absl::OkStatus();
}

absl::Status BitmapSet::Enable(const std::string& name, bool enabled, BlockDevice& image) {
  MutexLock lock(&mutex_);
  Stored* const stored = FindTrusted(name);
  if (stored == nullptr) return absl::NotFoundError(absl::StrCat("the image has no bitmap \"", name, "\""));
  if (absl::Status status = Mark(image, stored); !status.ok()) return status;
  stored->changed = true;
  stored->entry.flags = enabled ? stored->entry.flags | kBitmapAuto : stored->entry.flags & ~kBitmapAuto;
  stored->bitmap->set_enabled(enabled);
  if (enabled) follows_.store(true);
  return absl::OkStatus();
}

bool BitmapSet::empty() const {
  MutexLock lock(&mutex_);
  return bitmaps_.empty() && deleted_.empty();
}

absl::Status BitmapSet::Create(const std::string& name, uint32_t granularity_bits, uint64_t disk_size,
                               BlockDevice& image) {
  if (version_ < 3) return absl::InvalidArgumentError("images of version 2 have no dirty bitmaps");
  if (name.empty() || name.size() > kMaxBitmapNameBytes || name.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("a bitmap's name has ", name.size(),
                                                   " bytes; possible are 1 to ", kMaxBitmapNameBytes,
                                                   ", and no NUL among them"));
  }
  if (granularity_bits < kMinBitmapGranularityBits || granularity_bits > kMaxBitmapGranularityBits) {
    return absl::InvalidArgumentError(absl::StrCat("a bitmap's granularity is 2^", granularity_bits,
                                                   " bytes; possible are 2^", kMinBitmapGranularityBits,
                                                   " to 2^", kMaxBitmapGranularityBits));
  }
  const auto first_cluster = Read(image, 0, uint64_t{1} << cluster_bits_);
  if (!first_cluster.ok()) return first_cluster.status();
  if (!PlaceOfBitmapsExtension(*first_cluster).has_value()) {
    return absl::ResourceExhaustedError("the image's first cluster has no room for a bitmaps extension");
  }
  MutexLock lock(&mutex_);
  const uint64_t bits = BitmapBits(disk_size, granularity_bits);
  uint64_t bytes = bits / 8;
  for (const std::unique_ptr<Stored>& stored : bitmaps_) {
    if (stored->entry.name == name) {
      return absl::AlreadyExistsError(absl::StrCat("the image has a bitmap \"", name, "\" already"));
    }
    if (stored->bitmap != nullptr) bytes += stored->bitmap->bits() / 8;
  }
  if (bytes > kMaxBitmapBytes || bitmaps_.size() >= kMaxBitmaps) {
    return absl::ResourceExhaustedError(absl::StrCat("the image's bitmaps would take ", bytes,
                                                     " bytes of memory; at most ", kMaxBitmapBytes,
                                                     " are possible"));
  }
  auto stored = std::make_unique<Stored>();
  stored->entry.name = name;
  stored->entry.granularity_bits = static_cast<uint8_t>(granularity_bits);
  stored->entry.flags = kBitmapAuto;
  stored->table.resize(BitmapTableEntries(bits, uint64_t{1} << cluster_bits_));
  stored->entry.table_size = static_cast<uint32_t>(stored->table.size());
  stored->bitmap = std::make_shared<DirtyBitmap>(name, granularity_bits, disk_size, /*enabled=*/true);
  stored->context = DirtyBitmapContext(stored->bitmap);
  stored->changed = true;
  bitmaps_.push_back(std::move(stored));
  made_or_deleted_ = true;
  follows_.store(true);
  return absl::OkStatus();
}

absl::Status BitmapSet::Delete(const std::string& name) {
  MutexLock lock(&mutex_);
  for (auto at = bitmaps_.begin(); at != bitmaps_.end(); ++at) {
    if ((*at)->entry.name != name) continue;
    if ((*at)->bitmap != nullptr) (*at)->bitmap->set_deleted();
    deleted_.push_back(std::move(*at));
    bitmaps_.erase(at);
    made_or_deleted_ = true;
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrCat("the image has no bitmap \"", name, "\""));
}

bool BitmapSet::TakeRow(WriteMap& map, uint64_t clusters, uint32_t cluster_bits, uint64_t* offset) {
  const uint64_t first = map.TakeTable(clusters);
  *offset = first << cluster_bits;
  return first != 0;
}

bool BitmapSet::PlanDirectory(WriteMap& map, std::vector<uint64_t>* unused) {
  for (uint64_t i = 0; i < ClustersOf(directory_.size()); ++i) {
    unused->push_back((directory_offset_ >> cluster_bits_) + i);
  }
  MutexLock lock(&mutex_);
  for (const std::unique_ptr<Stored>& stored : deleted_) {
    if (stored->flags_offset == 0) continue;
    for (uint64_t i = 0; i < ClustersOf(uint64_t{stored->entry.table_size} * 8); ++i) {
      unused->push_back((stored->entry.table_offset >> cluster_bits_) + i);
    }
    for (const uint64_t part : stored->table) {
      if (part > 1) unused->push_back(part >> cluster_bits_);
    }
  }
  std::vector<BitmapEntry> entries;
  for (const std::unique_ptr<Stored>& stored : bitmaps_) {
    uint64_t* const table = &stored->entry.table_offset;
    const uint64_t clusters = ClustersOf(uint64_t{stored->entry.table_size} * 8);
    if (stored->flags_offset == 0 && clusters > 0 && !TakeRow(map, clusters, cluster_bits_, table)) {
      return false;
    }
    entries.push_back(stored->entry);
    // One that we could not follow.
    if (stored->marked && stored->bitmap == nullptr) entries.back().flags |= kBitmapInUse;
  }
  directory_ = EncodeBitmapDirectory(entries);
  return directory_.empty() || TakeRow(map, ClustersOf(directory_.size()), cluster_bits_, &directory_offset_);
}

Task<IoResult> BitmapSet::WriteDirectory(BlockChannel& channel) {
  std::optional<BitmapsExtension> extension;
  if (!directory_.empty()) {
    IoResult result = co_await channel.Write(directory_offset_, directory_, WriteFlags::kNone);
    if (result.ok()) result = co_await channel.Flush();
    if (!result.ok()) co_return result;
    MutexLock lock(&mutex_);
    extension =
        BitmapsExtension{static_cast<uint32_t>(bitmaps_.size()), directory_.size(), directory_offset_};
  }
  co_return co_await WriteBitmapsExtension(channel, uint64_t{1} << cluster_bits_, extension);
}

bool BitmapSet::PlanTable(Stored* stored, WriteMap& map, std::vector<uint64_t>* unused) {
  std::vector<uint8_t> part(uint64_t{1} << cluster_bits_);
  for (size_t i = 0; i < stored->table.size(); ++i) {
    const bool any = stored->bitmap->GetBytes(i * part.size(), absl::MakeSpan(part));
    uint64_t& entry = stored->table[i];
    if (any && entry <= 1) {
      const uint64_t cluster = map.TakeTable(1);
      if (cluster == 0) return false;
      entry = cluster << cluster_bits_;
    } else if (!any && entry != 0) {
      if (entry > 1) unused->push_back(entry >> cluster_bits_);
      entry = 0;
    }
  }
  return true;
}

Task<IoResult> BitmapSet::WriteContent(BlockChannel& channel, Stored* stored) {
  std::vector<uint8_t> part(uint64_t{1} << cluster_bits_);
  IoResult result;
  for (size_t i = 0; i < stored->table.size() && result.ok(); ++i) {
    if (stored->table[i] <= 1) continue;
    stored->bitmap->GetBytes(i * part.size(), absl::MakeSpan(part));
    result = co_await channel.Write(stored->table[i], part, WriteFlags::kNone);
  }
  if (result.ok() && !stored->table.empty()) {
    const std::vector<uint8_t> table = ToBytes(stored->table);
    result = co_await channel.Write(stored->entry.table_offset, table, WriteFlags::kNone);
  }
  co_return result;
}

Task<IoResult> BitmapSet::WriteFlags(BlockChannel& channel, std::vector<Stored*> bitmaps, bool in_use) {
  for (Stored* const stored : bitmaps) {
    uint8_t flags[4];
    Store32(flags, stored->entry.flags | (in_use ? kBitmapInUse : 0));
    const IoResult result = co_await channel.Write(stored->flags_offset, flags, WriteFlags::kNone);
    if (!result.ok()) co_return result;
  }
  co_return co_await channel.Flush();
}

Task<IoResult> BitmapSet::Store(Reactor& reactor, BlockChannel& channel, BlockChannel* data, WriteMap& map,
                                Committer& committer) {
  std::vector<Stored*> changed;
  std::vector<Stored*> in_file;
  bool new_directory;
  {
    MutexLock lock(&mutex_);
    new_directory = made_or_deleted_;
    for (const std::unique_ptr<Stored>& stored : bitmaps_) {
      if (!stored->changed || stored->bitmap == nullptr) continue;
      changed.push_back(stored.get());
      if (stored->flags_offset != 0) in_file.push_back(stored.get());
    }
  }
  if (changed.empty() && !new_directory) co_return IoResult::Ok();
  IoResult result = co_await WriteFlags(channel, in_file, /*in_use=*/true);
  std::vector<uint64_t> unused;
  for (Stored* const stored : changed) {
    if (!PlanTable(stored, map, &unused)) co_return IoResult::Error(ENOSPC);
  }
  if (new_directory && !PlanDirectory(map, &unused)) co_return IoResult::Error(ENOSPC);
  // Refcount before reference.
  if (result.ok()) result = co_await committer.Commit(reactor, channel, data);
  for (Stored* const stored : changed) {
    if (result.ok()) result = co_await WriteContent(channel, stored);
  }
  if (result.ok()) result = co_await channel.Flush();
  if (result.ok()) {
    result = new_directory ? co_await WriteDirectory(channel)
                           : co_await WriteFlags(channel, in_file, /*in_use=*/false);
  }
  if (!result.ok()) co_return result;
  // No table names these any more.
  for (const uint64_t cluster : unused) map.GiveBackMetadata(cluster, 1);
  if (!unused.empty()) result = co_await committer.Commit(reactor, channel, data);
  if (result.ok()) result = co_await channel.Flush();
  co_return result;
}

}  // namespace berth::qcow2
