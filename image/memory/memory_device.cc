#include "image/memory/memory_device.h"

#include "absl/strings/str_cat.h"

namespace berth {
namespace {

class MemoryChannel final : public BlockChannel {
 public:
  MemoryChannel(SparsePages* pages, Reactor* reactor) : pages_(pages), reactor_(reactor) {}

  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override {
    return Task<IoResult>(pages_->Read(offset, out));
  }

  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags) override {
    return Task<IoResult>(pages_->Write(offset, data));
  }

  Task<IoResult> Flush() override { return Task<IoResult>(IoResult::Ok()); }

  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
    return ZeroRange(offset, offset + length, Has(flags, ZeroFlags::kNoUnmap));
  }

  Task<IoResult> Discard(uint64_t offset, uint64_t length) override {
    // Only whole pages can be given back; what is left of the edges stays as it is.
    constexpr uint64_t kPage = SparsePages::kPageSize;
    const uint64_t end =
        offset + length == pages_->size() ? offset + length : (offset + length) / kPage * kPage;
    return ZeroRange((offset + kPage - 1) / kPage * kPage, end, /*keep_space=*/false);
  }

  Task<IoResult> Prefetch(uint64_t, uint64_t) override { return Task<IoResult>(IoResult::Ok()); }

  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) override {
    return Task<IoResult>(pages_->Extents(offset, length, out));
  }

 private:
  Task<IoResult> ZeroRange(uint64_t begin, uint64_t end, bool keep_space) {
    if (begin >= end) return Task<IoResult>(IoResult::Ok());
    const IoResult result = pages_->ZeroSome(&begin, end, keep_space);
    if (!result.ok() || begin == end) return Task<IoResult>(result);
    return ZeroRest(begin, end, keep_space);
  }

  // A long range in pieces, so that others have their turn.
  Task<IoResult> ZeroRest(uint64_t begin, uint64_t end, bool keep_space) {
    while (begin < end) {
      co_await reactor_->Yield();
      if (IoResult result = pages_->ZeroSome(&begin, end, keep_space); !result.ok()) co_return result;
    }
    co_return IoResult::Ok();
  }

  SparsePages* const pages_;
  Reactor* const reactor_;
};

absl::Status CheckSize(uint64_t size) {
  if (size <= SparsePages::kMaxSize) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a memory image of ", size, " bytes is larger than the ",
                                                 SparsePages::kMaxSize, " bytes it may have"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryDevice>> MemoryDevice::Create(uint64_t size) {
  if (absl::Status status = CheckSize(size); !status.ok()) return status;
  return std::unique_ptr<MemoryDevice>(new MemoryDevice(size));
}

MemoryDevice::MemoryDevice(uint64_t size)
    : traits_{.resizable = true, .can_discard = true, .fast_zero = true}, pages_(size) {}

absl::StatusOr<std::unique_ptr<BlockChannel>> MemoryDevice::OpenChannel(Reactor& reactor) {
  return std::make_unique<MemoryChannel>(&pages_, &reactor);
}

absl::Status MemoryDevice::Resize(uint64_t new_size) {
  if (absl::Status status = CheckSize(new_size); !status.ok()) return status;
  MutexLock lock(&resizing_);
  pages_.Resize(new_size);
  return absl::OkStatus();
}

}  // namespace berth
