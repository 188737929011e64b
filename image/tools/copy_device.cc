#include "image/tools/copy_device.h"

#include <algorithm>
#include <cerrno>
#include <coroutine>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "image/block/content_runs.h"
#include "image/block/extent.h"
#include "image/io/gate.h"
#include "image/io/io_result.h"
#include "image/io/reactor_pool.h"
#include "image/io/task.h"

namespace berth {
namespace {

// Zeroes and extents are asked for in ranges of this, so that a cancellation is heard.
constexpr uint64_t kRange = uint64_t{1} << 30;

absl::Status Failure(absl::string_view what, uint64_t offset, uint64_t length, int error) {
  return absl::ErrnoToStatus(error, absl::StrCat(what, " at offset ", offset, ", length ", length));
}

// Lives on the reactor.
class Copy {
 public:
  Copy(BlockChannel& source, BlockChannel& target, Reactor& reactor, const CopyOptions& options,
       Progress& progress)
      : source_(source),
        target_(target),
        options_(options),
        progress_(progress),
        gate_(reactor),
        reactor_(reactor) {
    for (size_t i = 0; i < std::max<size_t>(options.pieces, 1); ++i) buffers_.emplace_back();
  }

  Task<absl::Status> Run(uint64_t size, uint64_t target_size) {
    if (absl::Status status = co_await Measure(size); !status.ok()) co_return status;
    for (uint64_t offset = 0; offset < size && error_.ok();) offset = co_await CopyRange(offset, size);
    for (uint64_t offset = size; !options_.target_is_zero && offset < target_size && !Stopped();) {
      const uint64_t length = std::min(kRange, target_size - offset);
      co_await Zero(offset, length);
      offset += length;
    }
    co_await gate_.Close();
    if (error_.ok()) {
      if (const IoResult result = co_await target_.Flush(); !result.ok()) {
        error_ = absl::ErrnoToStatus(result.error, "the flush of the target");
      }
    }
    co_return error_;
  }

 private:
  bool Stopped() {
    if (error_.ok() && progress_.cancelled()) {
      error_ = absl::CancelledError(
          absl::StrCat("cancelled after ", progress_.done(), " of ", progress_.total(), " bytes of data"));
    }
    return !error_.ok();
  }

  // The first error is the one that is told.
  void Fail(absl::Status status) {
    if (error_.ok()) error_ = std::move(status);
  }

  Task<IoResult> Extents(uint64_t offset, uint64_t size, std::vector<Extent>* extents) {
    extents->clear();
    return source_.Extents(offset, std::min(kRange, size - offset), extents);
  }

  // Sums up the data there is.
  Task<absl::Status> Measure(uint64_t size) {
    uint64_t data = 0;
    std::vector<Extent> extents;
    for (uint64_t offset = 0; offset < size;) {
      if (Stopped()) co_return error_;
      const IoResult result = co_await Extents(offset, size, &extents);
      if (!result.ok()) co_return Failure("the source's extents", offset, size - offset, result.error);
      for (const Extent& extent : extents) {
        offset += extent.length;
        if (!extent.zero) data += extent.length;
      }
    }
    progress_.SetTotal(data);
    co_return absl::OkStatus();
  }

  // Starts the copying of the next extents; returns where they end.
  Task<uint64_t> CopyRange(uint64_t offset, uint64_t size) {
    if (Stopped()) co_return size;
    std::vector<Extent> extents;
    const IoResult result = co_await Extents(offset, size, &extents);
    if (!result.ok()) {
      Fail(Failure("the source's extents", offset, size - offset, result.error));
      co_return size;
    }
    for (const Extent& extent : extents) {
      if (extent.zero) {
        if (!options_.target_is_zero) co_await Zero(offset, extent.length);
      } else {
        co_await CopyData(offset, extent.length);
      }
      if (Stopped()) co_return size;
      offset += extent.length;
    }
    co_return offset;
  }

  // Starts pieces, each when there is a buffer for it.
  Task<void> CopyData(uint64_t offset, uint64_t length) {
    const uint64_t end = offset + length;
    while (offset < end && !Stopped()) {
      // Pieces end at multiples of their size, which are boundaries of clusters and blocks as well.
      const uint64_t piece = std::min(end - offset, options_.piece_bytes - offset % options_.piece_bytes);
      std::vector<uint8_t> buffer = co_await TakeBuffer();
      if (Stopped()) {
        GiveBuffer(std::move(buffer));
        co_return;
      }
      buffer.resize(options_.piece_bytes);
      Spawn(CopyPiece(offset, static_cast<size_t>(piece), std::move(buffer), gate_.Enter()));
      offset += piece;
    }
  }

  Task<void> CopyPiece(uint64_t offset, size_t length, std::vector<uint8_t> buffer, Gate::Holder) {
    const absl::Span<uint8_t> data = absl::MakeSpan(buffer).first(length);
    if (const IoResult result = co_await source_.Read(offset, data); !result.ok()) {
      Fail(Failure("a read of the source", offset, length, result.error));
    } else {
      co_await WriteRuns(offset, data);
    }
    copied_ += length;
    if (error_.ok()) progress_.SetDone(copied_);
    GiveBuffer(std::move(buffer));
  }

  Task<void> WriteRuns(uint64_t offset, absl::Span<const uint8_t> data) {
    if (options_.zero_block_bytes == 0) {
      co_await Write(offset, data);
      co_return;
    }
    for (const ContentRun& run :
         FindZeroRuns(offset, data, options_.zero_block_bytes, options_.zero_block_bytes)) {
      if (!error_.ok()) co_return;
      if (!run.zero) {
        co_await Write(offset, data.first(run.length));
      } else if (!options_.target_is_zero) {
        co_await Zero(offset, run.length);
      }
      offset += run.length;
      data.remove_prefix(run.length);
    }
  }

  Task<void> Write(uint64_t offset, absl::Span<const uint8_t> data) {
    if (const IoResult result = co_await target_.Write(offset, data, WriteFlags::kNone); !result.ok()) {
      Fail(Failure("a write to the target", offset, data.size(), result.error));
    }
  }

  Task<void> Zero(uint64_t offset, uint64_t length) {
    if (const IoResult result = co_await target_.Zero(offset, length, ZeroFlags::kNone); !result.ok()) {
      Fail(Failure("zeroes to the target", offset, length, result.error));
    }
  }

  // Only Run()'s own coroutine waits here, so one waiter is enough.
  Task<std::vector<uint8_t>> TakeBuffer() {
    struct Awaiter {
      Copy* copy;
      bool await_ready() const noexcept { return !copy->buffers_.empty(); }
      void await_suspend(std::coroutine_handle<> waiter) const noexcept { copy->waiter_ = waiter; }
      void await_resume() const noexcept {}
    };
    co_await Awaiter{this};
    std::vector<uint8_t> buffer = std::move(buffers_.back());
    buffers_.pop_back();
    co_return buffer;
  }

  void GiveBuffer(std::vector<uint8_t> buffer) {
    buffers_.push_back(std::move(buffer));
    if (waiter_) reactor_.Schedule(std::exchange(waiter_, nullptr));
  }

  BlockChannel& source_;
  BlockChannel& target_;
  const CopyOptions options_;
  Progress& progress_;
  Gate gate_;
  Reactor& reactor_;
  std::vector<std::vector<uint8_t>> buffers_;  // Those that are free.
  std::coroutine_handle<> waiter_;
  uint64_t copied_ = 0;
  absl::Status error_;
};

}  // namespace

absl::Status CopyDevice(BlockDevice& source, BlockDevice& target, Reactor& reactor,
                        const CopyOptions& options, Progress& progress) {
  const uint64_t size = source.size();
  if (target.size() < size) {
    return absl::InvalidArgumentError(
        absl::StrCat("the target has ", target.size(), " bytes, the source ", size));
  }
  auto copy = [&]() -> Task<absl::Status> {
    absl::StatusOr<std::unique_ptr<BlockChannel>> from = source.OpenChannel(reactor);
    if (!from.ok()) co_return from.status();
    absl::StatusOr<std::unique_ptr<BlockChannel>> to = target.OpenChannel(reactor);
    if (!to.ok()) co_return to.status();
    Copy work(**from, **to, reactor, options, progress);
    co_return co_await work.Run(size, target.size());
  };
  return RunOn(reactor, copy);
}

}  // namespace berth
