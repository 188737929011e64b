#include "image/filter/rate_limit.h"

#include <utility>

namespace berth {
namespace {

class RateLimitChannel final : public ForwardingChannel {
 public:
  RateLimitChannel(std::unique_ptr<BlockChannel> next, RateLimiter* limiter, Reactor* reactor, bool fast_zero)
      : ForwardingChannel(std::move(next)), fast_zero_(fast_zero), queue_(limiter, reactor) {}

  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override {
    return Limit(out.size(), [this, offset, out] { return next().Read(offset, out); });
  }
  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override {
    return Limit(data.size(), [this, offset, data, flags] { return next().Write(offset, data, flags); });
  }
  Task<IoResult> Flush() override {
    return Limit(0, [this] { return next().Flush(); });
  }
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
    // kFastOnly is a request to be refused where the zeroes would have to be written.
    const bool moves_data =
        !Has(flags, ZeroFlags::kFastOnly) && (!fast_zero_ || Has(flags, ZeroFlags::kNoUnmap));
    return Limit(moves_data ? length : 0,
                 [this, offset, length, flags] { return next().Zero(offset, length, flags); });
  }
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override {
    return Limit(0, [this, offset, length] { return next().Discard(offset, length); });
  }
  Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override {
    return Limit(length, [this, offset, length] { return next().Prefetch(offset, length); });
  }

 private:
  // What need not wait costs no coroutine frame.
  template <typename Operation>
  Task<IoResult> Limit(uint64_t bytes, Operation operation) {
    const RateLimitQueue::Turn turn = queue_.Enter(bytes);
    if (turn.passed) return operation();
    return Later(turn, bytes, operation);
  }

  template <typename Operation>
  Task<IoResult> Later(RateLimitQueue::Turn turn, uint64_t bytes, Operation operation) {
    co_await queue_.Wait(turn, bytes);
    co_return co_await operation();
  }

  const bool fast_zero_;
  RateLimitQueue queue_;
};

}  // namespace

RateLimitDevice::RateLimitDevice(std::shared_ptr<BlockDevice> next, const RateLimits& limits)
    : ForwardingDevice(std::move(next)), limiter_(limits) {}

absl::StatusOr<std::unique_ptr<BlockChannel>> RateLimitDevice::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = next().OpenChannel(reactor);
  if (!channel.ok()) return channel.status();
  return std::make_unique<RateLimitChannel>(*std::move(channel), &limiter_, &reactor, traits().fast_zero);
}

}  // namespace berth
