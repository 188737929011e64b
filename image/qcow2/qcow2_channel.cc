#include "image/qcow2/qcow2_channel.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "image/io/big_endian.h"
#include "image/io/gate.h"
#include "image/qcow2/writer.h"

namespace berth {
namespace {

using qcow2::RunKind;

// Of one request, so many reads are under way at once at most.
constexpr size_t kPiecesAtOnce = 64;
// Slices that one call of Extents loads at most.
constexpr int kMostLoads = 256;

Task<void> Finish(Task<IoResult> reading, IoResult* first_error, Gate::Holder) {
  const IoResult result = co_await reading;
  if (first_error->ok()) *first_error = result;
}

}  // namespace

struct Qcow2Channel::Piece {
  Run run;
  uint64_t offset;
  absl::Span<uint8_t> out;
};

absl::StatusOr<std::unique_ptr<Qcow2Channel>> Qcow2Channel::Open(Qcow2Device& device, Reactor& reactor) {
  const Qcow2Files& files = device.files_;
  std::unique_ptr<BlockChannel> channels[3];
  size_t i = 0;
  for (const std::shared_ptr<BlockDevice>& file : {files.image, files.data, files.backing}) {
    if (file != nullptr) {
      absl::StatusOr<std::unique_ptr<BlockChannel>> channel = file->OpenChannel(reactor);
      if (!channel.ok()) return channel.status();
      channels[i] = *std::move(channel);
    }
    ++i;
  }
  std::unique_ptr<Qcow2Channel> opened(new Qcow2Channel(device, reactor, std::move(channels[0]),
                                                        std::move(channels[1]), std::move(channels[2])));
  if (files.decrypted != nullptr) {
    absl::StatusOr<std::unique_ptr<BlockChannel>> decrypted = files.decrypted->OpenChannel(reactor);
    if (!decrypted.ok()) return decrypted.status();
    opened->decrypted_ = *std::move(decrypted);
  }
  if (device.old_cipher_ != nullptr) {
    absl::StatusOr<std::unique_ptr<luks::SectorCipher::Worker>> worker = device.old_cipher_->NewWorker();
    if (!worker.ok()) return worker.status();
    opened->old_cipher_ = *std::move(worker);
  }
  return opened;
}

Qcow2Channel::Qcow2Channel(Qcow2Device& device, Reactor& reactor, std::unique_ptr<BlockChannel> image,
                           std::unique_ptr<BlockChannel> data, std::unique_ptr<BlockChannel> backing)
    : device_(device),
      reactor_(reactor),
      image_(std::move(image)),
      data_(std::move(data)),
      backing_(std::move(backing)),
      compressed_(device.map_.layout(), device.compression_type_, *image_, device.image_size_, reactor),
      changes_(device.changes_, reactor) {}

uint64_t Qcow2Channel::data_size() const {
  if (device_.writer_ == nullptr) return device_.data_size_;
  return (data_ != nullptr ? device_.files_.data : device_.files_.image)->size();
}

std::optional<qcow2::Run> Qcow2Channel::Lookup(uint64_t offset, uint64_t length, qcow2::MappingHold* hold) {
  if (device_.writer_ != nullptr) {
    qcow2::WriteMap::Step step = device_.writer_->map.Find(offset, length);
    if (step.action == qcow2::WriteMap::Step::Action::kLoad) return std::nullopt;
    if (step.action != qcow2::WriteMap::Step::Action::kRun) return Run{RunKind::kInvalid, false, 0, length};
    // The oldest hold covers later ones.
    if (hold != nullptr && *hold == nullptr) *hold = std::move(step.hold);
    return step.run;
  }
  const qcow2::ClusterMap& map = device_.map_;
  const uint64_t index = offset >> map.slice_coverage_bits();
  const Known& known = known_[index % kKnown];
  if (known.index == index) return map.Map(*known.slice, offset, length);
  const qcow2::ClusterMap::SlicePlace place = map.Locate(offset);
  switch (place.state) {
    case qcow2::ClusterMap::SlicePlace::State::kNowhere:
      return map.WithoutTable(offset, length);
    case qcow2::ClusterMap::SlicePlace::State::kInvalid:
      return Run{RunKind::kInvalid, false, 0, length};
    case qcow2::ClusterMap::SlicePlace::State::kInFile:
      break;
  }
  std::shared_ptr<const qcow2::L2Slice> slice = device_.l2_cache_.Find(place.file_offset);
  if (slice == nullptr) return std::nullopt;
  const Run run = map.Map(*slice, offset, length);
  Remember(offset, std::move(slice));
  return run;
}

void Qcow2Channel::Remember(uint64_t offset, std::shared_ptr<const qcow2::L2Slice> slice) {
  const uint64_t index = offset >> device_.map_.slice_coverage_bits();
  known_[index % kKnown] = {index, std::move(slice)};
}

Task<IoResult> Qcow2Channel::LoadSlice(uint64_t offset) {
  if (device_.writer_ != nullptr) {
    const qcow2::WriteMap::Step step = device_.writer_->map.Find(offset, 1);
    if (step.action != qcow2::WriteMap::Step::Action::kLoad) co_return IoResult::Ok();
    co_return co_await LoadForWriting(step.file_offset);
  }
  const qcow2::ClusterMap::SlicePlace place = device_.map_.Locate(offset);
  const uint64_t bytes = device_.map_.slice_bytes();
  if (place.file_offset > device_.image_size_ || bytes > device_.image_size_ - place.file_offset) {
    co_return IoResult::Error(EIO);
  }
  std::vector<uint8_t> raw(bytes);
  const IoResult result = co_await image_->Read(place.file_offset, absl::MakeSpan(raw));
  if (!result.ok()) co_return result;
  qcow2::L2Slice slice = {place.file_offset, std::vector<uint64_t>(bytes / 8)};
  for (size_t i = 0; i < slice.words.size(); ++i) slice.words[i] = Load64(&raw[i * 8]);
  Remember(offset, device_.l2_cache_.Insert(std::move(slice)));
  co_return IoResult::Ok();
}

Task<IoResult> Qcow2Channel::Read(uint64_t offset, absl::Span<uint8_t> out) {
  if (!Inside(offset, out.size())) return Task<IoResult>(IoResult::Error(EIO));
  qcow2::MappingHold hold;
  const std::optional<Run> run = Lookup(offset, out.size(), &hold);
  if (!run.has_value() || run->length != out.size()) return ReadRuns(offset, out);
  Task<IoResult> reading = ReadRun(*run, offset, out);
  if (hold == nullptr || reading.await_ready()) return reading;
  return Held(std::move(reading), std::move(hold));
}

Task<IoResult> Qcow2Channel::Held(Task<IoResult> reading, qcow2::MappingHold) { co_return co_await reading; }

Task<IoResult> Qcow2Channel::ReadRun(const Run& run, uint64_t offset, absl::Span<uint8_t> out) {
  switch (run.kind) {
    case RunKind::kData:
      if (old_cipher_ != nullptr) return ReadOldAes(run.host, offset, out);
      return ReadData(run.host, out);
    case RunKind::kUnallocated:
      return ReadBacking(offset, out);
    case RunKind::kZero:
      memset(out.data(), 0, out.size());
      return Task<IoResult>(IoResult::Ok());
    case RunKind::kCompressed:
      return compressed_.Read(run.host, offset & (device_.map_.layout().cluster_size() - 1), out);
    case RunKind::kInvalid:
      break;
  }
  return Task<IoResult>(IoResult::Error(EIO));
}

// A file may end inside its last cluster, and the rest of that reads as zeroes. A cluster that lies wholly
// behind the end was lost.
Task<IoResult> Qcow2Channel::ReadData(uint64_t host, absl::Span<uint8_t> out) {
  const uint64_t size = data_size();
  if (host <= size && out.size() <= size - host) return data_file().Read(host, out);
  const uint64_t cluster = device_.map_.layout().cluster_size();
  const uint64_t end = (size + cluster - 1) / cluster * cluster;
  if (host > end || out.size() > end - host) return Task<IoResult>(IoResult::Error(EIO));
  const size_t there = size > host ? static_cast<size_t>(size - host) : 0;
  memset(out.data() + there, 0, out.size() - there);
  if (there == 0) return Task<IoResult>(IoResult::Ok());
  return data_file().Read(host, out.subspan(0, there));
}

Task<IoResult> Qcow2Channel::ReadOldAes(uint64_t host, uint64_t offset, absl::Span<uint8_t> out) {
  constexpr uint64_t kSector = 512;
  const uint64_t before = offset % kSector;
  std::vector<uint8_t> sectors((before + out.size() + kSector - 1) / kSector * kSector);
  const IoResult result = co_await ReadData(host - before, absl::MakeSpan(sectors));
  if (!result.ok()) co_return result;
  if (!old_cipher_->Decrypt(offset / kSector, absl::MakeSpan(sectors))) co_return IoResult::Error(EIO);
  memcpy(out.data(), &sectors[before], out.size());
  co_return IoResult::Ok();
}

// What the backing image is too short for reads as zeroes.
Task<IoResult> Qcow2Channel::ReadBacking(uint64_t offset, absl::Span<uint8_t> out) {
  const uint64_t size = device_.backing_size_;
  const size_t there = size > offset ? static_cast<size_t>(std::min<uint64_t>(size - offset, out.size())) : 0;
  if (there < out.size()) memset(out.data() + there, 0, out.size() - there);
  if (there == 0) return Task<IoResult>(IoResult::Ok());
  return backing_->Read(offset, out.subspan(0, there));
}

Task<IoResult> Qcow2Channel::ReadRuns(uint64_t offset, absl::Span<uint8_t> out) {
  std::vector<Piece> pieces;
  qcow2::MappingHold hold;
  while (!out.empty()) {
    std::optional<Run> run = Lookup(offset, out.size(), &hold);
    while (!run.has_value()) {
      const IoResult loaded = co_await LoadSlice(offset);
      if (!loaded.ok()) co_return loaded;
      run = Lookup(offset, out.size(), &hold);
    }
    const absl::Span<uint8_t> part = out.subspan(0, run->length);
    if (!pieces.empty() && pieces.back().run.Continues(*run)) {
      Piece& last = pieces.back();
      last.run.length += run->length;
      last.out = absl::MakeSpan(last.out.data(), last.out.size() + part.size());
    } else {
      if (pieces.size() == kPiecesAtOnce) {
        const IoResult result = co_await ReadPieces(pieces);
        if (!result.ok()) co_return result;
        pieces.clear();
      }
      pieces.push_back({*run, offset, part});
    }
    offset += part.size();
    out.remove_prefix(part.size());
  }
  co_return co_await ReadPieces(pieces);
}

Task<IoResult> Qcow2Channel::ReadPieces(absl::Span<const Piece> pieces) {
  if (pieces.size() == 1) co_return co_await ReadRun(pieces[0].run, pieces[0].offset, pieces[0].out);
  Gate gate(reactor_);
  IoResult first_error;
  for (const Piece& piece : pieces) {
    Task<IoResult> reading = ReadRun(piece.run, piece.offset, piece.out);
    if (!reading.await_ready()) {
      Spawn(Finish(std::move(reading), &first_error, gate.Enter()));
    } else if (const IoResult result = reading.await_resume(); first_error.ok()) {
      first_error = result;
    }
  }
  co_await gate.Close();
  co_return first_error;
}

Task<IoResult> Qcow2Channel::Prefetch(uint64_t offset, uint64_t length) {
  if (!Inside(offset, length)) return Task<IoResult>(IoResult::Error(EIO));
  return PrefetchRuns(offset, length);
}

Task<IoResult> Qcow2Channel::PrefetchRuns(uint64_t offset, uint64_t length) {
  const uint64_t end = offset + length;
  for (int loads = 0; offset < end;) {
    const std::optional<Run> run = Lookup(offset, end - offset);
    if (!run.has_value()) {
      if (++loads > kMostLoads) break;
      const IoResult loaded = co_await LoadSlice(offset);
      if (!loaded.ok()) co_return loaded;
      continue;
    }
    if (run->kind == RunKind::kData && run->host < data_size()) {
      (void)co_await data_file().Prefetch(run->host, std::min(run->length, data_size() - run->host));
    } else if (run->kind == RunKind::kUnallocated && offset < device_.backing_size_) {
      (void)co_await backing_->Prefetch(offset, std::min(run->length, device_.backing_size_ - offset));
    }
    offset += run->length;
  }
  co_return IoResult::Ok();
}

Task<IoResult> Qcow2Channel::Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) {
  if (!Inside(offset, length)) return Task<IoResult>(IoResult::Error(EIO));
  return FindExtents(offset, length, out);
}

Task<IoResult> Qcow2Channel::FindExtents(uint64_t offset, uint64_t length, std::vector<Extent>* out) {
  const uint64_t end = offset + length;
  std::vector<Extent> found;
  for (int loads = 0; offset < end && found.size() < kMaxExtents;) {
    const std::optional<Run> run = Lookup(offset, end - offset);
    if (!run.has_value()) {
      if (++loads > kMostLoads && !found.empty()) break;
      const IoResult loaded = co_await LoadSlice(offset);
      if (!loaded.ok()) co_return loaded;
      continue;
    }
    uint64_t covered = run->length;
    switch (run->kind) {
      case RunKind::kData:
      case RunKind::kCompressed:
        AppendExtent({run->length, true, false}, &found);
        break;
      case RunKind::kZero:
        AppendExtent({run->length, run->has_space, true}, &found);
        break;
      case RunKind::kUnallocated: {
        const IoResult result = co_await BackingExtents(*run, offset, &found, &covered);
        if (!result.ok()) co_return result;
        break;
      }
      case RunKind::kInvalid:
        co_return IoResult::Error(EIO);
    }
    offset += covered;
  }
  // The backing image may have brought more than the bound.
  if (found.size() > kMaxExtents) found.resize(kMaxExtents);
  out->insert(out->end(), found.begin(), found.end());
  co_return IoResult::Ok();
}

Task<IoResult> Qcow2Channel::BackingExtents(const Run& run, uint64_t offset, std::vector<Extent>* found,
                                            uint64_t* covered) {
  const uint64_t size = device_.backing_size_;
  if (offset >= size) {
    AppendExtent({run.length, run.has_space, true}, found);
    *covered = run.length;
    co_return IoResult::Ok();
  }
  std::vector<Extent> below;
  const IoResult result = co_await backing_->Extents(offset, std::min(run.length, size - offset), &below);
  *covered = 0;
  for (const Extent& extent : below) {
    AppendExtent({extent.length, extent.allocated || run.has_space, extent.zero}, found);
    *covered += extent.length;
  }
  co_return result;
}

}  // namespace berth
