#include "tests/fakes/faulty_device.h"

#include <cassert>
#include <utility>

#include "absl/time/clock.h"

namespace berth {

class FaultyChannel final : public ForwardingChannel {
 public:
  FaultyChannel(std::unique_ptr<BlockChannel> next, FaultyDevice* device, Reactor* reactor)
      : ForwardingChannel(std::move(next)), device_(device), reactor_(reactor) {}

  Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override {
    return Through(FaultyDevice::kRead, [this, offset, out] { return next().Read(offset, out); });
  }
  Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override {
    return Through(FaultyDevice::kWrite,
                   [this, offset, data, flags] { return next().Write(offset, data, flags); });
  }
  Task<IoResult> Flush() override {
    return Through(FaultyDevice::kFlush, [this] { return next().Flush(); });
  }
  Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
    return Through(FaultyDevice::kZero,
                   [this, offset, length, flags] { return next().Zero(offset, length, flags); });
  }
  Task<IoResult> Discard(uint64_t offset, uint64_t length) override {
    return Through(FaultyDevice::kDiscard, [this, offset, length] { return next().Discard(offset, length); });
  }
  Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override {
    return Through(FaultyDevice::kPrefetch,
                   [this, offset, length] { return next().Prefetch(offset, length); });
  }
  Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) override {
    return Through(FaultyDevice::kExtents,
                   [this, offset, length, out] { return next().Extents(offset, length, out); });
  }

 private:
  template <typename Next>
  Task<IoResult> Through(FaultyDevice::Operation operation, Next next) {
    struct HeldHere {
      FaultyChannel* channel;
      FaultyDevice::Operation operation;
      bool await_ready() const noexcept { return false; }
      bool await_suspend(std::coroutine_handle<> waiter) const {
        return channel->device_->Keep(operation, {channel->reactor_, waiter});
      }
      void await_resume() const noexcept {}
    };
    const int error = device_->Arrive(operation);
    co_await HeldHere{this, operation};
    if (error != 0) co_return IoResult::Error(error);
    co_return co_await next();
  }

  FaultyDevice* const device_;
  Reactor* const reactor_;
};

FaultyDevice::FaultyDevice(std::shared_ptr<BlockDevice> next) : ForwardingDevice(std::move(next)) {}

FaultyDevice::~FaultyDevice() {
  MutexLock lock(&mutex_);
  for (const Rule& rule : rules_) {
    assert(rule.held.empty());
    (void)rule;
  }
}

absl::StatusOr<std::unique_ptr<BlockChannel>> FaultyDevice::OpenChannel(Reactor& reactor) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = next().OpenChannel(reactor);
  if (!channel.ok()) return channel.status();
  return std::make_unique<FaultyChannel>(*std::move(channel), this, &reactor);
}

void FaultyDevice::Fail(Operation operation, int error, uint64_t times, uint64_t after) {
  MutexLock lock(&mutex_);
  rules_[operation].error = error;
  rules_[operation].failures = times;
  rules_[operation].passes = after;
}

void FaultyDevice::Hold(Operation operation) {
  MutexLock lock(&mutex_);
  rules_[operation].hold = true;
}

void FaultyDevice::Release(Operation operation) {
  std::vector<Held> held;
  {
    MutexLock lock(&mutex_);
    rules_[operation].hold = false;
    held.swap(rules_[operation].held);
  }
  for (const Held& each : held) {
    each.reactor->Post([waiter = each.waiter] { waiter.resume(); });
  }
}

bool FaultyDevice::WaitUntilHeld(Operation operation, size_t count, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  while (rules_[operation].held.size() < count) {
    if (!held_.WaitUntil(&mutex_, deadline)) return false;
  }
  return true;
}

uint64_t FaultyDevice::count(Operation operation) const {
  MutexLock lock(&mutex_);
  return rules_[operation].count;
}

int FaultyDevice::Arrive(Operation operation) {
  MutexLock lock(&mutex_);
  Rule& rule = rules_[operation];
  ++rule.count;
  if (rule.failures == 0) return 0;
  if (rule.passes > 0) {
    --rule.passes;
    return 0;
  }
  if (rule.failures != kAlways) --rule.failures;
  return rule.error;
}

bool FaultyDevice::Keep(Operation operation, const Held& held) {
  MutexLock lock(&mutex_);
  if (!rules_[operation].hold) return false;
  rules_[operation].held.push_back(held);
  held_.SignalAll();
  return true;
}

}  // namespace berth
