#include "image/luks/encrypted_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "image/luks/luks_header.h"
#include "image/qcow2/metadata_reader.h"

namespace berth::luks {

namespace {

// What is decrypted or encrypted before others on the reactor get their turn: some ten microseconds of work.
constexpr uint64_t kChunk = uint64_t{64} << 10;
// Buffers that a channel keeps.
constexpr size_t kKeptBuffers = 8;

constexpr uint64_t RoundDown(uint64_t value) { return value / kSectorBytes * kSectorBytes; }
constexpr uint64_t RoundUp(uint64_t value) { return RoundDown(value + kSectorBytes - 1); }
constexpr bool IsWhole(uint64_t offset, uint64_t length) { return (offset | length) % kSectorBytes == 0; }

}  // namespace

class EncryptedChannel final : public BlockChannel {
 public:
  EncryptedChannel(EncryptedDevice& device, Reactor& reactor, std::unique_ptr<BlockChannel> next,
                   std::unique_ptr<SectorCipher::Worker> worker)
      : device_(device), reactor_(reactor), next_(std::move(next)), worker_(std::move(worker)) {}

  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override {
    return IsWhole(offset, out.size()) ? ReadSectors(offset, out) : ReadBytes(offset, out);
  }

  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override {
    return WriteBytes(offset, data.size(), data.data(), flags);
  }

  Task<IoResult> Flush() override { return next_->Flush(); }

  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
    if (Has(flags, ZeroFlags::kFastOnly)) return Task<IoResult>(IoResult::Error(ENOTSUP));
    return WriteBytes(offset, length, nullptr,
                      Has(flags, ZeroFlags::kFua) ? WriteFlags::kFua : WriteFlags::kNone);
  }

  Task<IoResult> Discard(uint64_t offset, uint64_t length) override {
    const uint64_t begin = RoundUp(offset);
    const uint64_t end = RoundDown(offset + length);
    if (begin >= end) return Task<IoResult>(IoResult::Ok());
    return next_->Discard(Below(begin), end - begin);
  }

  Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override {
    return next_->Prefetch(Below(offset), length);
  }

  Task<IoResult> Extents(uint64_t, uint64_t length, std::vector<Extent>* out) override {
    out->push_back({length, /*allocated=*/true, /*zero=*/false});
    return Task<IoResult>(IoResult::Ok());
  }

 private:
  // A buffer of kChunk bytes, back in the channel's store at its end.
  class Buffer {
   public:
    explicit Buffer(EncryptedChannel* channel) : channel_(channel) {
      if (channel->buffers_.empty()) {
        bytes_.resize(kChunk);
      } else {
        bytes_ = std::move(channel->buffers_.back());
        channel->buffers_.pop_back();
      }
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
      if (channel_->buffers_.size() < kKeptBuffers) channel_->buffers_.push_back(std::move(bytes_));
    }
    absl::Span<uint8_t> first(size_t size) { return absl::MakeSpan(bytes_).subspan(0, size); }

   private:
    EncryptedChannel* const channel_;
    std::vector<uint8_t> bytes_;
  };

  uint64_t Below(uint64_t offset) const { return device_.begin_ + offset; }

  // Whole sectors. What is behind the end of the file, as its last sector may be, is read as zeroes first.
  Task<IoResult> ReadSectors(uint64_t offset, absl::Span<uint8_t> out) {
    const uint64_t below = Below(offset);
    const uint64_t size = device_.next_->size();
    uint64_t there = out.size();
    if (below + there > size) {
      there = size - std::min(size, below);
      memset(out.data() + there, 0, out.size() - there);
    }
    if (there > 0) {
      const IoResult result = co_await next_->Read(below, out.subspan(0, there));
      if (!result.ok()) co_return result;
    }
    while (true) {
      const size_t length = std::min<size_t>(out.size(), kChunk);
      if (!worker_->Decrypt(offset / kSectorBytes, out.subspan(0, length))) co_return IoResult::Error(EIO);
      offset += length;
      out.remove_prefix(length);
      if (out.empty()) co_return IoResult::Ok();
      co_await reactor_.Yield();
    }
  }

  Task<IoResult> ReadBytes(uint64_t offset, absl::Span<uint8_t> out) {
    Buffer buffer(this);
    while (!out.empty()) {
      const uint64_t begin = RoundDown(offset);
      const uint64_t end = std::min(RoundUp(offset + out.size()), begin + kChunk);
      const absl::Span<uint8_t> sectors = buffer.first(end - begin);
      const IoResult result = co_await ReadSectors(begin, sectors);
      if (!result.ok()) co_return result;
      const size_t length = std::min<size_t>(end - offset, out.size());
      memcpy(out.data(), &sectors[offset - begin], length);
      offset += length;
      out.remove_prefix(length);
    }
    co_return IoResult::Ok();
  }

  // `data` is null for zeroes.
  Task<IoResult> WriteBytes(uint64_t offset, uint64_t length, const uint8_t* data, WriteFlags flags) {
    while (length > 0) {
      const uint64_t end = std::min(offset + length, RoundDown(offset) + kChunk);
      const IoResult result = co_await WriteChunk(offset, end, data, flags);
      if (!result.ok()) co_return result;
      length -= end - offset;
      if (data != nullptr) data += end - offset;
      offset = end;
      if (length > 0) co_await reactor_.Yield();
    }
    co_return IoResult::Ok();
  }

  Task<IoResult> WriteChunk(uint64_t offset, uint64_t end, const uint8_t* data, WriteFlags flags) {
    const uint64_t first = RoundDown(offset);
    const uint64_t last = RoundUp(end);
    const bool whole = IsWhole(offset, end);
    Buffer buffer(this);
    const absl::Span<uint8_t> sectors = buffer.first(last - first);
    RangeLock::Hold hold(&device_.writes_, reactor_, first, last,
                         whole ? RangeLock::Kind::kShared : RangeLock::Kind::kExclusive);
    co_await hold;
    if (!whole) {
      // The sectors at its ends, of which it changes a part.
      IoResult result = co_await ReadSectors(first, sectors.subspan(0, kSectorBytes));
      if (result.ok() && last - first > kSectorBytes) {
        result = co_await ReadSectors(last - kSectorBytes, sectors.subspan(sectors.size() - kSectorBytes));
      }
      if (!result.ok()) co_return result;
    }
    if (data != nullptr) {
      memcpy(&sectors[offset - first], data, end - offset);
    } else {
      memset(&sectors[offset - first], 0, end - offset);
    }
    if (!worker_->Encrypt(first / kSectorBytes, sectors)) co_return IoResult::Error(EIO);
    co_return co_await next_->Write(Below(first), sectors, flags);
  }

  EncryptedDevice& device_;
  Reactor& reactor_;
  const std::unique_ptr<BlockChannel> next_;
  const std::unique_ptr<SectorCipher::Worker> worker_;
  std::vector<std::vector<uint8_t>> buffers_;
};

EncryptedDevice::EncryptedDevice(std::shared_ptr<BlockDevice> next,
                                 std::shared_ptr<const SectorCipher> cipher, uint64_t begin)
    : next_(std::move(next)), cipher_(std::move(cipher)), begin_(begin), traits_(next_->traits()) {
  traits_.fast_zero = false;
  traits_.preferred_alignment = std::max(traits_.preferred_alignment, kSectorBytes);
}

uint64_t EncryptedDevice::size() const {
  const uint64_t below = next_->size();
  return below <= begin_ ? 0 : RoundDown(below - begin_);
}

absl::StatusOr<std::unique_ptr<BlockChannel>> EncryptedDevice::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> next = next_->OpenChannel(reactor);
  if (!next.ok()) return next.status();
  absl::StatusOr<std::unique_ptr<SectorCipher::Worker>> worker = cipher_->NewWorker();
  if (!worker.ok()) return worker.status();
  return std::make_unique<EncryptedChannel>(*this, reactor, *std::move(next), *std::move(worker));
}

absl::Status EncryptedDevice::Resize(uint64_t new_size) {
  if (new_size == 0 || new_size % kSectorBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("an encrypted image cannot have ", new_size,
                                                   " bytes; it has a multiple of ", kSectorBytes));
  }
  const uint64_t old_size = size();
  if (absl::Status status = next_->Resize(begin_ + new_size); !status.ok()) return status;
  if (new_size <= old_size) return absl::OkStatus();
  const auto fill = [&](Reactor& reactor, BlockChannel&) -> Task<IoResult> {
    absl::StatusOr<std::unique_ptr<BlockChannel>> channel = OpenChannel(reactor);
    if (!channel.ok()) co_return IoResult::Error(ENOMEM);
    IoResult result = co_await (*channel)->Zero(old_size, new_size - old_size, ZeroFlags::kNone);
    if (result.ok()) result = co_await (*channel)->Flush();
    co_return result;
  };
  const absl::StatusOr<IoResult> filled = qcow2::RunOnFile(*next_, fill);
  if (filled.ok() && filled->ok()) return absl::OkStatus();
  absl::Status status = filled.ok()
                            ? absl::ErrnoToStatus(filled->error, "cannot fill the new space with zeroes")
                            : filled.status();
  status.Update(next_->Resize(begin_ + old_size));
  return status;
}

}  // namespace berth::luks
