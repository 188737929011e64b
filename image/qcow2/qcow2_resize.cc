// A new size for a qcow2 image. docs/qcow2.md, "A new size", numbers the steps.
#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "image/qcow2/bitmap_set.h"
#include "image/qcow2/metadata_reader.h"
#include "image/qcow2/qcow2_channel.h"
#include "image/qcow2/qcow2_device.h"
#include "image/qcow2/writer.h"

namespace berth {
namespace {

using qcow2::RunKind;
using Action = qcow2::WriteMap::Step::Action;

constexpr uint64_t kSector = 512;
constexpr int kMostRounds = 4;

absl::Status Describe(const absl::StatusOr<IoResult>& result, uint64_t old_size, uint64_t new_size) {
  if (!result.ok()) return result.status();
  if (result->ok()) return absl::OkStatus();
  return absl::ErrnoToStatus(result->error, absl::StrCat("cannot resize the qcow2 image from ", old_size,
                                                         " to ", new_size, " bytes"));
}

}  // namespace

absl::Status Qcow2Device::CheckNewSize(uint64_t new_size) const {
  if (writer_ == nullptr) {
    return absl::FailedPreconditionError("the qcow2 image is open for reading; it keeps its size");
  }
  // Version 2 says nothing of the disk's size in a snapshot.
  if (version_ < 3 && snapshot_count_ > 0) {
    return absl::FailedPreconditionError(absl::StrCat("the qcow2 image has version 2 (compat 0.10) and ",
                                                      snapshot_count_,
                                                      " internal snapshots, and cannot be resized beside "
                                                      "them; delete them, or make it version 3 with qemu-img "
                                                      "amend -o compat=1.1"));
  }
  // Their tables have the size of the disk.
  if (!bitmaps_->empty()) {
    return absl::FailedPreconditionError(
        "the qcow2 image has dirty bitmaps, and cannot be resized beside them; delete them with qemu-img "
        "bitmap "
        "--remove, or resize it with qemu-img while it is closed");
  }
  const uint64_t most = qcow2::kMaxL1Bytes / 8 << writer_->map.l1_coverage_bits();
  if (new_size == 0 || new_size % kSector != 0 || new_size > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("a size of ", new_size,
                     " bytes is not possible: with its clusters a qcow2 image has "
                     "a multiple of ",
                     kSector, ", at most ", most));
  }
  return absl::OkStatus();
}

absl::Status Qcow2Device::Resize(uint64_t new_size) {
  MutexLock lock(&resizing_);
  if (absl::Status status = CheckNewSize(new_size); !status.ok()) return status;
  const uint64_t old_size = size();
  if (new_size == old_size) return absl::OkStatus();
  // From here on nobody takes the end of the disk for the end of its last cluster.
  fixed_end_ = 0;
  const absl::Status status = new_size > old_size ? GrowTo(new_size) : ShrinkTo(new_size);
  fixed_end_ = size();
  return status;
}

absl::Status Qcow2Device::GrowTo(uint64_t new_size) {
  const uint64_t old_size = size();
  changes_.WaitForEarlier();
  // The place of its clusters is the one they have on the disk.
  if (files_.data != nullptr && files_.data->size() < new_size) {
    if (!files_.data->traits().resizable) {
      return absl::FailedPreconditionError(absl::StrCat("the external data file has ", files_.data->size(),
                                                        " bytes and cannot grow to ", new_size));
    }
    if (absl::Status status = files_.data->Resize(new_size); !status.ok()) return status;
  }
  const auto grow = [&](Reactor& reactor, BlockChannel&) -> Task<IoResult> {
    absl::StatusOr<std::unique_ptr<Qcow2Channel>> channel = Qcow2Channel::Open(*this, reactor);
    if (!channel.ok()) co_return IoResult::Error(EIO);
    co_return co_await (*channel)->Grow(old_size, new_size);
  };
  absl::Status status = Describe(qcow2::RunOnFile(*files_.image, grow), old_size, new_size);
  if (status.ok()) size_.store(new_size, std::memory_order_release);
  return status;
}

absl::Status Qcow2Device::ShrinkTo(uint64_t new_size) {
  const uint64_t old_size = size();
  // First nobody comes behind the new end any more, then nobody is there any more.
  size_.store(new_size, std::memory_order_release);
  changes_.WaitForEarlier();
  bool written = false;
  const auto shrink = [&](Reactor& reactor, BlockChannel&) -> Task<IoResult> {
    absl::StatusOr<std::unique_ptr<Qcow2Channel>> channel = Qcow2Channel::Open(*this, reactor);
    if (!channel.ok()) co_return IoResult::Error(EIO);
    co_return co_await (*channel)->Shrink(new_size, &written);
  };
  const absl::Status status = Describe(qcow2::RunOnFile(*files_.image, shrink), old_size, new_size);
  if (!written) size_.store(old_size, std::memory_order_release);
  if (!status.ok()) return status;
  kept_size_ = std::min(kept_size_, files_.image->size());
  if (files_.data == nullptr || files_.data->size() <= new_size || !files_.data->traits().resizable) {
    return absl::OkStatus();
  }
  return files_.data->Resize(new_size);
}

Task<IoResult> Qcow2Channel::Grow(uint64_t old_size, uint64_t new_size) {
  qcow2::Writer& writer = *device_.writer_;
  const uint32_t bits = writer.map.l1_coverage_bits();
  IoResult result = co_await writer.committer.GrowL1(reactor_, *image_, ((new_size - 1) >> bits) + 1);
  if (result.ok() && data_ != nullptr) {
    result = co_await data_file().Zero(old_size, new_size - old_size, ZeroFlags::kNone);
  }
  for (uint64_t at = old_size; result.ok() && at < new_size;) {
    const std::optional<Run> run = Lookup(at, new_size - at);
    if (!run.has_value()) {
      result = co_await LoadSlice(at);
      continue;
    }
    switch (run->kind) {
      case RunKind::kZero:
        break;
      case RunKind::kUnallocated:
        if (device_.backing_size_ <= at) {
          at = writer.map.NextTable(at + run->length);
          continue;
        }
        // What the backing image has there must not shine through.
        result = co_await ZeroSpace(at, std::min(run->length, device_.backing_size_ - at));
        break;
      case RunKind::kData:
      case RunKind::kCompressed:
        // Left behind by a smaller disk.
        result = co_await ZeroSpace(at, run->length);
        break;
      case RunKind::kInvalid:
        result = IoResult::Error(EIO);
    }
    at += run->length;
  }
  if (result.ok()) result = co_await Commit();
  if (result.ok()) result = co_await writer.committer.WriteDiskSize(reactor_, *image_, new_size);
  co_return result;
}

// Of space behind the end of the disk, up to the end of its last unit.
Task<IoResult> Qcow2Channel::ZeroSpace(uint64_t offset, uint64_t length) {
  const uint64_t unit = uint64_t{1} << device_.map_.layout().unit_bits();
  const uint64_t first = (offset + unit - 1) / unit * unit;
  const uint64_t last = (offset + length + unit - 1) / unit * unit;
  IoResult result;
  if (offset < first) result = co_await WriteZeroes(offset, std::min(first, offset + length) - offset);
  if (result.ok() && first < last) result = co_await Clear(first, last - first, /*discard=*/false);
  if (result.ok()) result = co_await AfterChange(false);
  co_return result;
}

Task<IoResult> Qcow2Channel::Shrink(uint64_t size, bool* written) {
  qcow2::Writer& writer = *device_.writer_;
  const uint64_t cluster = device_.map_.layout().cluster_size();
  const uint64_t end = writer.map.l1_entries() << writer.map.l1_coverage_bits();
  bool committed = false;
  IoResult result;
  for (uint64_t at = (size + cluster - 1) / cluster * cluster; result.ok();) {
    at = writer.map.NextTable(at);
    if (at >= end) break;
    const qcow2::WriteMap::Step step = writer.map.PlanCut(at, end - at);
    if (step.action == Action::kDone) {
      at += step.length;
      result = co_await AfterChange(false);
    } else {
      result = co_await Prepare(step, &committed);
    }
  }
  if (result.ok()) result = co_await Commit();
  if (result.ok()) result = co_await writer.committer.WriteDiskSize(reactor_, *image_, size);
  if (!result.ok()) co_return result;
  *written = true;
  // The refcounts are down; now the space goes back, and is free.
  result = co_await Commit();
  if (result.ok()) result = co_await Commit();
  // What counts the blocks that go may be in a block that can go then.
  size_t dropped = 1;
  for (int round = 0; result.ok() && dropped > 0 && round < kMostRounds; ++round) {
    result = co_await writer.committer.DropUnusedBlocks(reactor_, *image_, &dropped);
    if (result.ok() && dropped > 0) result = co_await Commit();
    if (result.ok() && dropped > 0) result = co_await Commit();
  }
  if (result.ok()) result = co_await image_->Flush();
  if (result.ok()) co_await writer.committer.CutFreeTail(reactor_);
  co_return IoResult::Ok();
}

}  // namespace berth
