// What Qcow2Channel does where the image is open for writing.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "image/io/big_endian.h"
#include "image/qcow2/bitmap_set.h"
#include "image/qcow2/qcow2_channel.h"
#include "image/qcow2/writer.h"

namespace berth {
namespace {

using Action = qcow2::WriteMap::Step::Action;

constexpr uint64_t kZeroChunk = uint64_t{64} << 10;
// Never written. Not const, as a constant would take its bytes in the program file.
alignas(4096) uint8_t zeroes[kZeroChunk];

}  // namespace

Task<IoResult> Qcow2Channel::LoadForWriting(uint64_t file_offset) {
  std::vector<uint8_t> raw(device_.map_.slice_bytes());
  const IoResult result = co_await image_->Read(file_offset, absl::MakeSpan(raw));
  if (!result.ok()) co_return result;
  std::vector<uint64_t> words(raw.size() / 8);
  for (size_t i = 0; i < words.size(); ++i) words[i] = Load64(&raw[i * 8]);
  device_.writer_->map.AddSlice(file_offset, std::move(words));
  co_return IoResult::Ok();
}

Task<IoResult> Qcow2Channel::Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) {
  if (device_.writer_ == nullptr) return Task<IoResult>(IoResult::Error(EPERM));
  return WriteAll(offset, data, flags == WriteFlags::kFua);
}

Task<IoResult> Qcow2Channel::WriteAll(uint64_t offset, absl::Span<const uint8_t> data, bool durable) {
  const qcow2::ChangesUnderWay::Change change(changes_);
  if (!Inside(offset, data.size())) co_return IoResult::Error(EIO);
  device_.bitmaps_->NoteChange(offset, data.size());
  IoResult result = co_await WriteRange(offset, data);
  if (result.ok()) result = co_await AfterChange(durable);
  co_return result;
}

Task<IoResult> Qcow2Channel::AfterChange(bool durable) {
  qcow2::Writer& writer = *device_.writer_;
  if (durable || writer.durable || writer.map.NeedsCommit()) {
    co_return co_await Commit();
  }
  co_return IoResult::Ok();
}

Task<IoResult> Qcow2Channel::Commit() {
  return device_.writer_->committer.Commit(reactor_, *image_, data_.get());
}

Task<IoResult> Qcow2Channel::Prepare(const qcow2::WriteMap::Step& step, bool* committed) {
  qcow2::Writer& writer = *device_.writer_;
  switch (step.action) {
    case Action::kLoad:
      co_return co_await LoadForWriting(step.file_offset);
    case Action::kWait: {
      auto wait = writer.map.WaitFor(reactor_, step.wait_offset, step.length);
      co_await wait;
      co_return IoResult::Ok();
    }
    case Action::kFull:
      // What was freed can be used after two: one takes its last reference away, one gives its space back.
      if (std::exchange(*committed, true)) co_return IoResult::Error(ENOSPC);
      if (IoResult first = co_await Commit(); !first.ok()) co_return first;
      co_return co_await Commit();
    default:
      co_return IoResult::Error(EIO);
  }
}

Task<IoResult> Qcow2Channel::WriteRange(uint64_t offset, absl::Span<const uint8_t> data) {
  qcow2::WriteMap& map = device_.writer_->map;
  bool committed = false;
  while (!data.empty()) {
    const qcow2::WriteMap::Step step = map.PlanWrite(offset, data.size());
    IoResult result;
    if (step.action == Action::kRun) {
      result = co_await data_file().Write(step.run.host, data.subspan(0, step.length), WriteFlags::kNone);
    } else if (step.action == Action::kAllocate) {
      result = co_await Fill(*step.allocation, offset, data.subspan(0, step.length));
      map.Finish(step.allocation, result.ok());
    } else {
      result = co_await Prepare(step, &committed);
      if (!result.ok()) co_return result;
      continue;
    }
    if (!result.ok()) co_return result;
    offset += step.length;
    data.remove_prefix(step.length);
  }
  co_return IoResult::Ok();
}

// Fills whole units: with `data`, and before and behind it with what the disk has there.
Task<IoResult> Qcow2Channel::Fill(const qcow2::WriteMap::Allocation& allocation, uint64_t offset,
                                  absl::Span<const uint8_t> data) {
  const uint32_t bits = device_.map_.layout().cluster_bits;
  const uint64_t begin = allocation.fill_begin;
  const uint64_t disk_size = device_.size();
  // An external data file ends with the disk.
  const uint64_t end = data_ == nullptr ? allocation.fill_end : std::min(allocation.fill_end, disk_size);
  const uint64_t host = (allocation.host << bits) + (begin - (allocation.guest << bits));
  const uint64_t data_end = offset + data.size();
  IoResult result;
  if (data_ == nullptr) {
    result = co_await device_.writer_->committer.Grow(reactor_, (allocation.host + allocation.count) << bits);
  }
  if (result.ok() && offset > begin) {
    std::vector<uint8_t> head(offset - begin);
    result = co_await ReadRuns(begin, absl::MakeSpan(head));
    if (result.ok()) result = co_await data_file().Write(host, head, WriteFlags::kNone);
  }
  if (result.ok() && data_end < end) {
    std::vector<uint8_t> tail(end - data_end);
    // Behind the end of the disk there is nothing.
    const uint64_t there = data_end < disk_size ? std::min(end, disk_size) - data_end : 0;
    if (there > 0) result = co_await ReadRuns(data_end, absl::MakeSpan(tail).subspan(0, there));
    if (result.ok()) {
      result = co_await data_file().Write(host + (data_end - begin), tail, WriteFlags::kNone);
    }
  }
  if (result.ok()) result = co_await data_file().Write(host + (offset - begin), data, WriteFlags::kNone);
  co_return result;
}

Task<IoResult> Qcow2Channel::Flush() {
  if (device_.writer_ == nullptr) return Task<IoResult>(IoResult::Ok());
  return Commit();
}

Task<IoResult> Qcow2Channel::Zero(uint64_t offset, uint64_t length, ZeroFlags flags) {
  if (device_.writer_ == nullptr) return Task<IoResult>(IoResult::Error(EPERM));
  const bool keep_space = Has(flags, ZeroFlags::kNoUnmap) || !device_.writer_->unmap;
  if (Has(flags, ZeroFlags::kFastOnly) && (keep_space || !device_.traits_.fast_zero)) {
    return Task<IoResult>(IoResult::Error(ENOTSUP));
  }
  return ZeroAll(offset, length, keep_space, Has(flags, ZeroFlags::kFua));
}

Task<IoResult> Qcow2Channel::ZeroAll(uint64_t offset, uint64_t length, bool keep_space, bool durable) {
  const qcow2::ChangesUnderWay::Change change(changes_);
  if (!Inside(offset, length)) co_return IoResult::Error(EIO);
  device_.bitmaps_->NoteChange(offset, length);
  const uint64_t unit = uint64_t{1} << device_.map_.layout().unit_bits();
  const uint64_t end = offset + length;
  const uint64_t first = std::min(end, (offset + unit - 1) / unit * unit);
  const uint64_t last = std::max(first, end == device_.fixed_end_ ? end : end / unit * unit);
  IoResult result;
  if (keep_space) {
    result = co_await WriteZeroes(offset, length);
  } else if (device_.data_is_raw_) {
    // The mapping stays: it leads to zeroes then.
    result = co_await data_file().Zero(offset, length, ZeroFlags::kNone);
  } else {
    if (offset < first) result = co_await WriteZeroes(offset, first - offset);
    if (result.ok() && last < end) result = co_await WriteZeroes(last, end - last);
    // Before the mapping, so that nothing is taken from who writes there when it is in the mapping.
    if (result.ok() && data_ != nullptr && first < last) {
      result = co_await data_file().Zero(first, last - first, ZeroFlags::kNone);
    }
    if (result.ok() && first < last) result = co_await Clear(first, last - first, /*discard=*/false);
  }
  if (result.ok()) result = co_await AfterChange(durable);
  co_return result;
}

Task<IoResult> Qcow2Channel::WriteZeroes(uint64_t offset, uint64_t length) {
  while (length > 0) {
    const uint64_t chunk = std::min(length, kZeroChunk);
    const IoResult result = co_await WriteRange(offset, absl::MakeConstSpan(zeroes, chunk));
    if (!result.ok()) co_return result;
    offset += chunk;
    length -= chunk;
    if (length > 0) co_await reactor_.Yield();
  }
  co_return IoResult::Ok();
}

Task<IoResult> Qcow2Channel::Clear(uint64_t offset, uint64_t length, bool discard) {
  bool committed = false;
  while (length > 0) {
    const qcow2::WriteMap::Step step = device_.writer_->map.PlanClear(offset, length, discard);
    IoResult result;
    if (step.action == Action::kByWriting) {
      result = co_await WriteZeroes(offset, step.length);
    } else if (step.action != Action::kDone) {
      result = co_await Prepare(step, &committed);
      if (!result.ok()) co_return result;
      continue;
    }
    if (!result.ok()) co_return result;
    offset += step.length;
    length -= step.length;
    if (length > 0) result = co_await AfterChange(false);
    if (!result.ok()) co_return result;
  }
  co_return IoResult::Ok();
}

Task<IoResult> Qcow2Channel::Discard(uint64_t offset, uint64_t length) {
  if (device_.writer_ == nullptr) return Task<IoResult>(IoResult::Error(EPERM));
  if (!device_.writer_->unmap) {
    return Task<IoResult>(Inside(offset, length) ? IoResult::Ok() : IoResult::Error(EIO));
  }
  return DiscardUnits(offset, length);
}

Task<IoResult> Qcow2Channel::DiscardUnits(uint64_t offset, uint64_t length) {
  const qcow2::ChangesUnderWay::Change change(changes_);
  if (!Inside(offset, length)) co_return IoResult::Error(EIO);
  const uint64_t unit = uint64_t{1} << device_.map_.layout().unit_bits();
  const uint64_t first = (offset + unit - 1) / unit * unit;
  const uint64_t end = offset + length;
  const uint64_t last = end == device_.fixed_end_ ? end : end / unit * unit;
  if (first >= last) co_return IoResult::Ok();
  offset = first;
  length = last - first;
  device_.bitmaps_->NoteChange(offset, length);
  IoResult result;
  if (device_.data_is_raw_) {
    // Where the mapping says zeroes, the file has them too. Where that takes as long as writing, nothing is
    // to be gained.
    result = co_await data_file().Zero(offset, length, ZeroFlags::kFastOnly);
    if (result.error == ENOTSUP) result = IoResult::Ok();
  } else {
    if (data_ != nullptr) result = co_await data_file().Discard(offset, length);
    if (result.ok()) result = co_await Clear(offset, length, /*discard=*/true);
  }
  if (result.ok()) result = co_await AfterChange(false);
  co_return result;
}

}  // namespace berth
