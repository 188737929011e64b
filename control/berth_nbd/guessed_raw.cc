#include "control/berth_nbd/guessed_raw.h"

#include <cerrno>

#include "control/berth_nbd/format_probe.h"

namespace berth::control {
namespace {

class GuessedRawChannel final : public ForwardingChannel {
 public:
  using ForwardingChannel::ForwardingChannel;

  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override {
    if (ChangesPartOfHead(offset, data.size())) return Task<IoResult>(IoResult::Error(EINVAL));
    if (offset == 0 && !ProbeFormat(data.subspan(0, kProbedBytes)).empty()) {
      return Task<IoResult>(IoResult::Error(EPERM));
    }
    return next().Write(offset, data, flags);
  }

  // Zeroes in a part may complete what was almost a header.
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
    if (ChangesPartOfHead(offset, length)) return Task<IoResult>(IoResult::Error(EINVAL));
    return next().Zero(offset, length, flags);
  }
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override {
    if (ChangesPartOfHead(offset, length)) return Task<IoResult>(IoResult::Error(EINVAL));
    return next().Discard(offset, length);
  }

 private:
  static bool ChangesPartOfHead(uint64_t offset, uint64_t length) {
    return offset < kProbedBytes && (offset != 0 || length < kProbedBytes);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockChannel>> GuessedRawDevice::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = next().OpenChannel(reactor);
  if (!channel.ok()) return channel.status();
  return std::make_unique<GuessedRawChannel>(*std::move(channel));
}

}  // namespace berth::control
