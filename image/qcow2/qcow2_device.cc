#include "image/qcow2/qcow2_device.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/big_endian.h"
#include "image/io/progress.h"
#include "image/qcow2/allocation_depth.h"
#include "image/qcow2/bitmap_set.h"
#include "image/qcow2/check/check.h"
#include "image/qcow2/format/snapshot_table.h"
#include "image/qcow2/image_directories.h"
#include "image/qcow2/metadata_reader.h"
#include "image/qcow2/open_for_writing.h"
#include "image/qcow2/qcow2_channel.h"
#include "image/qcow2/writer.h"

namespace berth {
namespace {

using qcow2::Header;
using qcow2::Snapshot;

// Up to where DecodeHeader() needs it to know the rest.
constexpr uint64_t kFirstBytes = 512;

absl::StatusOr<Snapshot> LoadSnapshot(BlockDevice& image, const Header& header,
                                      const std::string& id_or_name) {
  const absl::StatusOr<std::vector<Snapshot>> snapshots = qcow2::ReadSnapshots(image, header);
  if (!snapshots.ok()) return snapshots.status();
  const Snapshot* found = FindSnapshot(*snapshots, id_or_name);
  if (found != nullptr) return *found;
  std::string known;
  for (const Snapshot& snapshot : *snapshots) {
    absl::StrAppend(&known, known.empty() ? "it has " : ", ", snapshot.id, " (\"", snapshot.name, "\")");
  }
  return absl::NotFoundError(absl::StrCat("the image has no internal snapshot with the id or name \"",
                                          id_or_name, "\"; ", known.empty() ? "it has none at all" : known));
}

absl::StatusOr<std::vector<uint64_t>> LoadL1(BlockDevice& image, uint64_t offset, uint64_t entries) {
  std::vector<uint8_t> bytes(entries * 8);
  if (!bytes.empty()) {
    absl::Status status = qcow2::ReadMetadata(image, offset, absl::MakeSpan(bytes));
    if (!status.ok()) return status;
  }
  std::vector<uint64_t> l1(entries);
  for (size_t i = 0; i < l1.size(); ++i) l1[i] = Load64(&bytes[i * 8]);
  return l1;
}

absl::Status CheckFiles(const Qcow2Files& files, const Header& header, const Qcow2Options& options) {
  const bool luks = header.crypt_method == qcow2::CryptMethod::kLuks;
  const bool old_aes = header.crypt_method == qcow2::CryptMethod::kAes;
  if (luks != (files.decrypted != nullptr) || old_aes != (options.old_cipher != nullptr)) {
    return absl::FailedPreconditionError(luks || old_aes
                                             ? "the image is encrypted, and no cipher was given"
                                             : "the image is not encrypted, and a cipher was given");
  }
  if (old_aes && options.writable) {
    return absl::UnimplementedError(
        "the image is encrypted with the old AES, which is only read; set read_only, or convert it with "
        "qemu-img convert -o encrypt.format=luks");
  }
  if (header.has_data_file() != (files.data != nullptr)) {
    return absl::InvalidArgumentError(header.has_data_file()
                                          ? "the image keeps its data in an external file, and none was given"
                                          : "the image has no external data file, and one was given");
  }
  return absl::OkStatus();
}

// Of an image that was not closed after it was written with lazy refcounts.
absl::StatusOr<Header> CountReferencesAgain(BlockDevice& image, const Header& header) {
  Progress unseen;
  absl::StatusOr<qcow2::CheckResult> result = CheckImage(image, header, qcow2::Repair::kAll, unseen);
  if (!result.ok()) return result.status();
  if (result->corruptions > 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the image was not closed after it was written with lazy refcounts, and ", result->corruptions,
        " of its entries are broken (", result->findings.front(), "); it may only be read"));
  }
  return ReadQcow2Header(image);
}

}  // namespace

absl::StatusOr<Header> ReadQcow2Header(BlockDevice& image) {
  std::vector<uint8_t> bytes(std::min(kFirstBytes, image.size()));
  if (!bytes.empty()) {
    absl::Status status = qcow2::ReadMetadata(image, 0, absl::MakeSpan(bytes));
    if (!status.ok()) return status;
  }
  const absl::StatusOr<uint64_t> needed = qcow2::HeaderBytes(bytes);
  if (!needed.ok()) return needed.status();
  bytes.resize(std::min(*needed, image.size()));
  absl::Status status = qcow2::ReadMetadata(image, 0, absl::MakeSpan(bytes));
  if (!status.ok()) return status;
  return qcow2::DecodeHeader(bytes, image.size());
}

absl::StatusOr<std::shared_ptr<Qcow2Device>> Qcow2Device::Open(Qcow2Files files, const Header& as_read,
                                                               const Qcow2Options& options) {
  Header header = as_read;
  if (absl::Status status = CheckFiles(files, header, options); !status.ok()) return status;
  if (options.writable && (header.incompatible_features & qcow2::kDirty) != 0 &&
      (header.incompatible_features & qcow2::kCorrupt) == 0) {
    absl::StatusOr<Header> repaired = CountReferencesAgain(*files.image, header);
    if (!repaired.ok()) return repaired.status();
    header = *std::move(repaired);
  }
  uint64_t size = header.size;
  uint64_t l1_offset = header.l1_table_offset;
  uint64_t l1_entries = header.l1_size;
  if (!options.snapshot.empty()) {
    absl::StatusOr<Snapshot> snapshot = LoadSnapshot(*files.image, header, options.snapshot);
    if (!snapshot.ok()) return snapshot.status();
    size = snapshot->disk_size.value_or(size);
    l1_offset = snapshot->l1_table_offset;
    l1_entries = snapshot->l1_size;
  }
  absl::StatusOr<std::vector<uint64_t>> l1 = LoadL1(*files.image, l1_offset, l1_entries);
  if (!l1.ok()) return l1.status();
  std::shared_ptr<Qcow2Device> device(
      new Qcow2Device(std::move(files), header, size, l1_offset, *l1, options));
  // They are of the disk, and not of a snapshot.
  if ((options.bitmaps || options.writable) && options.snapshot.empty()) {
    auto bitmaps = qcow2::BitmapSet::Load(*device->files_.image, header);
    if (!bitmaps.ok()) return bitmaps.status();
    device->bitmaps_ = *std::move(bitmaps);
  }
  if (options.writable) {
    if (!options.snapshot.empty()) {
      return absl::InvalidArgumentError("an internal snapshot can only be read; set read_only");
    }
    absl::Status status = device->PrepareWriting(header, *std::move(l1), options);
    if (!status.ok()) return status;
  }
  return device;
}

absl::Status Qcow2Device::PrepareWriting(const Header& header, std::vector<uint64_t> l1,
                                         const Qcow2Options& options) {
  if (absl::Status status = PrepareDataFile(); !status.ok()) return status;
  absl::StatusOr<qcow2::WritableState> state = qcow2::PrepareForWriting(
      *files_.image, header, l1, bitmaps_->clusters(),
      qcow2::kBitmapsConsistent | (data_is_raw_ ? qcow2::kRawExternalData : uint64_t{0}));
  if (!state.ok()) return state.status();
  if (absl::Status status = bitmaps_->MarkInUse(*files_.image); !status.ok()) return status;
  const bool has_backing = files_.backing != nullptr;
  const BlockTraits& data_traits = (files_.decrypted != nullptr ? files_.decrypted
                                    : files_.data != nullptr    ? files_.data
                                                                : files_.image)
                                       ->traits();
  writer_ =
      std::make_unique<qcow2::Writer>(header, std::move(l1), *std::move(state), *files_.image, has_backing,
                                      options.l2_cache_bytes, options.durable_writes, options.unmap);
  traits_.read_only = false;
  traits_.resizable = true;
  traits_.can_discard = options.unmap;
  traits_.fast_zero = options.unmap && (header.version >= 3 || !has_backing) &&
                      (files_.data == nullptr || data_traits.fast_zero);
  return absl::OkStatus();
}

// A cluster's place in the data file is the one that it has on the disk, so that the file has to be as long.
absl::Status Qcow2Device::PrepareDataFile() {
  if (files_.data == nullptr || files_.data->size() >= size()) return absl::OkStatus();
  if (files_.data->traits().resizable) return files_.data->Resize(size());
  return absl::FailedPreconditionError(absl::StrCat("the external data file has ", files_.data->size(),
                                                    " bytes and cannot grow to the disk's ", size(),
                                                    "; give the image a larger one, or set read_only"));
}

Qcow2Device::~Qcow2Device() {
  if (writer_ == nullptr) return;
  const auto commit = [this](Reactor& reactor, BlockChannel& channel) -> Task<IoResult> {
    std::unique_ptr<BlockChannel> data;
    if (files_.data != nullptr) {
      absl::StatusOr<std::unique_ptr<BlockChannel>> opened = files_.data->OpenChannel(reactor);
      if (!opened.ok()) co_return IoResult::Error(EIO);
      data = *std::move(opened);
    }
    IoResult result = co_await writer_->committer.Commit(reactor, channel, data.get());
    // What that one gave back, such as the place of a refcount table that moved.
    if (result.ok()) result = co_await writer_->committer.Commit(reactor, channel, data.get());
    // The refcounts of what was released, which a commit leaves to the next flush.
    if (result.ok()) result = co_await channel.Flush();
    if (result.ok()) {
      result = co_await bitmaps_->Store(reactor, channel, data.get(), writer_->map, writer_->committer);
    }
    co_return result;
  };
  // An error has been seen by whoever flushed; without a flush nothing was promised.
  const absl::StatusOr<IoResult> committed = qcow2::RunOnFile(*files_.image, commit);
  if (!committed.ok() || !committed->ok()) return;
  // The file grew in steps.
  const uint64_t used = std::max(kept_size_, writer_->map.end_cluster() << map_.layout().cluster_bits);
  if (files_.image->traits().resizable && files_.image->size() > used) (void)files_.image->Resize(used).ok();
}

Qcow2Device::Qcow2Device(Qcow2Files files, const Header& header, uint64_t size, uint64_t l1_table_offset,
                         std::vector<uint64_t> l1, const Qcow2Options& options)
    : files_(std::move(files)),
      compression_type_(header.compression_type),
      version_(header.version),
      snapshot_count_(header.snapshot_count),
      size_(size),
      fixed_end_(size),
      image_size_(files_.image->size()),
      data_size_(files_.data != nullptr ? files_.data->size() : image_size_),
      backing_size_(files_.backing != nullptr ? files_.backing->size() : 0),
      data_is_raw_((header.autoclear_features & qcow2::kRawExternalData) != 0 && files_.backing == nullptr),
      old_cipher_(options.old_cipher),
      map_(header, l1_table_offset, std::move(l1)),
      l2_cache_(options.l2_cache_bytes, map_.slice_bytes()),
      depth_(std::make_shared<AllocationDepth>(this)),
      kept_size_(image_size_) {
  const BlockTraits& below = (files_.data != nullptr ? files_.data : files_.image)->traits();
  traits_.read_only = true;
  traits_.rotational = below.rotational;
  traits_.preferred_alignment = below.preferred_alignment;
}

std::vector<std::shared_ptr<StatusContext>> Qcow2Device::contexts() const {
  std::vector<std::shared_ptr<StatusContext>> contexts;
  if (bitmaps_ != nullptr) contexts = bitmaps_->contexts();
  contexts.insert(contexts.begin(), depth_);
  if (contexts.size() > kMaxStatusContexts) contexts.resize(kMaxStatusContexts);
  return contexts;
}

absl::Status Qcow2Device::ClearBitmap(const std::string& name) {
  if (writer_ == nullptr) return absl::FailedPreconditionError("the image is open for reading only");
  return bitmaps_->Clear(name);
}

absl::Status Qcow2Device::EnableBitmap(const std::string& name, bool enabled) {
  if (writer_ == nullptr) return absl::FailedPreconditionError("the image is open for reading only");
  return bitmaps_->Enable(name, enabled, *files_.image);
}

absl::Status Qcow2Device::CreateBitmap(const std::string& name, uint32_t granularity_bits) {
  if (writer_ == nullptr) return absl::FailedPreconditionError("the image is open for reading only");
  MutexLock lock(&resizing_);
  return bitmaps_->Create(name, granularity_bits, size(), *files_.image);
}

absl::Status Qcow2Device::DeleteBitmap(const std::string& name) {
  if (writer_ == nullptr) return absl::FailedPreconditionError("the image is open for reading only");
  return bitmaps_->Delete(name);
}

absl::StatusOr<std::unique_ptr<BlockChannel>> Qcow2Device::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<Qcow2Channel>> channel = Qcow2Channel::Open(*this, reactor);
  if (!channel.ok()) return channel.status();
  return std::unique_ptr<BlockChannel>(*std::move(channel));
}

}  // namespace berth
