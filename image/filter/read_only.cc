#include "image/filter/read_only.h"

#include <cerrno>
#include <utility>

namespace berth {
namespace {

class ReadOnlyChannel final : public ForwardingChannel {
 public:
  using ForwardingChannel::ForwardingChannel;

  Task<IoResult> Write(uint64_t, absl::Span<const uint8_t>, WriteFlags) override { return Refuse(); }
  Task<IoResult> Zero(uint64_t, uint64_t, ZeroFlags) override { return Refuse(); }
  Task<IoResult> Discard(uint64_t, uint64_t) override { return Refuse(); }

 private:
  static Task<IoResult> Refuse() { return Task<IoResult>(IoResult::Error(EPERM)); }
};

BlockTraits WithoutChanges(BlockTraits traits) {
  traits.read_only = true;
  traits.resizable = false;
  traits.can_discard = false;
  traits.fast_zero = false;
  return traits;
}

}  // namespace

ReadOnlyDevice::ReadOnlyDevice(std::shared_ptr<BlockDevice> next)
    : ForwardingDevice(std::move(next)), traits_(WithoutChanges(ForwardingDevice::traits())) {}

absl::StatusOr<std::unique_ptr<BlockChannel>> ReadOnlyDevice::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = next().OpenChannel(reactor);
  if (!channel.ok()) return channel.status();
  return std::make_unique<ReadOnlyChannel>(*std::move(channel));
}

absl::Status ReadOnlyDevice::Resize(uint64_t) {
  return absl::FailedPreconditionError("the image is open read-only and cannot be resized");
}

}  // namespace berth
