#include "image/filter/detect_zeroes.h"

#include <cstring>
#include <utility>

namespace berth {
namespace {

// Compares the bytes with themselves, one further: the C library does that with the widest loads there are.
bool AllZero(absl::Span<const uint8_t> data) {
  return data[0] == 0 && std::memcmp(data.data(), data.data() + 1, data.size() - 1) == 0;
}

class DetectZeroesChannel final : public ForwardingChannel {
 public:
  DetectZeroesChannel(std::unique_ptr<BlockChannel> next, ZeroFlags flags)
      : ForwardingChannel(std::move(next)), flags_(flags) {}

  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override {
    if (!AllZero(data)) return next().Write(offset, data, flags);
    const ZeroFlags durable = flags == WriteFlags::kFua ? ZeroFlags::kFua : ZeroFlags::kNone;
    return next().Zero(offset, data.size(), flags_ | durable);
  }

 private:
  const ZeroFlags flags_;
};

}  // namespace

DetectZeroesDevice::DetectZeroesDevice(std::shared_ptr<BlockDevice> next, ZeroDetection detection)
    : ForwardingDevice(std::move(next)),
      flags_(detection == ZeroDetection::kUnmap ? ZeroFlags::kNone : ZeroFlags::kNoUnmap) {}

absl::StatusOr<std::unique_ptr<BlockChannel>> DetectZeroesDevice::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = next().OpenChannel(reactor);
  if (!channel.ok()) return channel.status();
  return std::make_unique<DetectZeroesChannel>(*std::move(channel), flags_);
}

}  // namespace berth
