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

}  // namespace

absl::Status ReadMetadata(BlockDevice& device, uint64_t offset, absl::Span<uint8_t> out) {
  if (!Reactors().ok()) return Reactors().status();
  Reactor& reactor = (*Reactors())->at(0);
  const auto read = [&]() -> Task<absl::Status> {
    absl::StatusOr<std::unique_ptr<BlockChannel>> channel = device.OpenChannel(reactor);
    if (!channel.ok()) co_return channel.status();
    const IoResult result = co_await (*channel)->Read(offset, out);
    if (result.ok()) co_return absl::OkStatus();
    co_return absl::ErrnoToStatus(
        result.error, absl::StrCat("cannot read ", out.size(), " bytes at ", offset, " of the image"));
  };
  return RunOn(reactor, read);
}

}  // namespace berth::qcow2
