#include "image/qcow2/metadata_reader.h"

#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "image/io/io_result.h"
#include "image/io/reactor_pool.h"
#include "image/io/task.h"

namespace berth::qcow2 {
namespace {

// One reactor for all images, made once and never destroyed: a chain of images is many small reads, and a
// ring and a thread for each would cost more than they do.
const absl::StatusOr<std::unique_ptr<ReactorPool>>& Reactors() {
  static const auto& pool = *new absl::StatusOr<std::unique_ptr<ReactorPool>>(ReactorPool::Create(1));
  return pool;
}

absl::Status Describe(const absl::StatusOr<IoResult>& result, absl::string_view what, uint64_t offset,
                      size_t bytes) {
  if (!result.ok()) return result.status();
  if (result->ok()) return absl::OkStatus();
  return absl::ErrnoToStatus(
      result->error, absl::StrCat("cannot ", what, " ", bytes, " bytes at ", offset, " of the image"));
}

}  // namespace

absl::StatusOr<IoResult> RunOnFile(BlockDevice& device,
                                   absl::FunctionRef<Task<IoResult>(Reactor&, BlockChannel&)> function) {
  if (!Reactors().ok()) return Reactors().status();
  Reactor& reactor = (*Reactors())->at(0);
  const auto run = [&]() -> Task<absl::StatusOr<IoResult>> {
    absl::StatusOr<std::unique_ptr<BlockChannel>> channel = device.OpenChannel(reactor);
    if (!channel.ok()) co_return channel.status();
    const IoResult result = co_await function(reactor, **channel);
    co_return result;
  };
  return RunOn(reactor, run);
}

absl::Status ReadMetadata(BlockDevice& device, uint64_t offset, absl::Span<uint8_t> out) {
  const auto read = [&](Reactor&, BlockChannel& channel) { return channel.Read(offset, out); };
  return Describe(RunOnFile(device, read), "read", offset, out.size());
}

absl::Status WriteUnflushed(BlockDevice& device, uint64_t offset, absl::Span<const uint8_t> data) {
  const auto write = [&](Reactor&, BlockChannel& channel) {
    return channel.Write(offset, data, WriteFlags::kNone);
  };
  return Describe(RunOnFile(device, write), "write", offset, data.size());
}

absl::Status FlushFile(BlockDevice& device) {
  const auto flush = [](Reactor&, BlockChannel& channel) { return channel.Flush(); };
  return Describe(RunOnFile(device, flush), "flush", 0, device.size());
}

absl::Status WriteMetadata(BlockDevice& device, uint64_t offset, absl::Span<const uint8_t> data) {
  absl::Status status = WriteUnflushed(device, offset, data);
  return status.ok() ? FlushFile(device) : status;
}

}  // namespace berth::qcow2
