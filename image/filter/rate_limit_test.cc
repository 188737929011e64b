#include "image/filter/rate_limit.h"

#include <cerrno>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "image/io/monotonic_clock.h"
#include "image/io/reactor_pool.h"
#include "image/null/null_device.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/fakes/faulty_device.h"

namespace berth {
namespace {

constexpr int64_t kMillisecond = 1'000'000;
constexpr uint64_t kSize = uint64_t{1} << 40;
// Slow enough that nothing of it passes while a test runs: ten seconds for each operation.
constexpr RateLimits kStopped = {.operations_per_second = 1, .burst_operations = 1};

class RateLimitTest : public testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(2);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }
  Reactor& reactor() { return pool_->at(0); }

  // How long `use(channel)` took, in nanoseconds.
  template <typename Use>
  int64_t Measure(BlockDevice& device, Reactor& where, Use use) {
    auto run = [&]() -> Task<int64_t> {
      auto channel = device.OpenChannel(where);
      EXPECT_TRUE(channel.ok()) << channel.status();
      const int64_t begin = MonotonicNanoseconds();
      co_await use(**channel);
      co_return MonotonicNanoseconds() - begin;
    };
    return RunOn(where, run);
  }

  std::unique_ptr<ReactorPool> pool_;
  std::shared_ptr<BlockDevice> null_ = std::make_shared<NullDevice>(kSize);
};

Task<void> ReadTimes(BlockChannel& channel, int times, size_t size) {
  std::vector<uint8_t> buffer(size);
  for (int i = 0; i < times; ++i) {
    const IoResult result = co_await channel.Read(0, absl::MakeSpan(buffer));
    EXPECT_TRUE(result.ok());
  }
}

// Timers never fire early, so the lower bound holds on the slowest machine.
TEST_F(RateLimitTest, OperationsASecond) {
  RateLimitDevice device(null_, {.operations_per_second = 1000, .burst_operations = 1});
  const int64_t took =
      Measure(device, reactor(), [](BlockChannel& channel) { return ReadTimes(channel, 30, 1); });
  EXPECT_GE(took, 28 * kMillisecond);
}

TEST_F(RateLimitTest, BytesASecond) {
  RateLimitDevice device(null_, {.bytes_per_second = 1'000'000, .burst_bytes = 1});
  const int64_t took =
      Measure(device, reactor(), [](BlockChannel& channel) { return ReadTimes(channel, 10, 5000); });
  EXPECT_GE(took, 45 * kMillisecond);
}

TEST_F(RateLimitTest, WhatMovesDataCountsItsBytes) {
  const std::vector<uint8_t> data(5000, 1);
  const std::vector<std::function<Task<IoResult>(BlockChannel&)>> operations = {
      [&](BlockChannel& channel) { return channel.Write(0, data, WriteFlags::kNone); },
      [&](BlockChannel& channel) { return channel.Zero(0, 5000, ZeroFlags::kNoUnmap); },
      [&](BlockChannel& channel) { return channel.Prefetch(0, 5000); },
  };
  for (const auto& operation : operations) {
    RateLimitDevice device(null_, {.bytes_per_second = 1'000'000, .burst_bytes = 1});
    const int64_t took = Measure(device, reactor(), [&](BlockChannel& channel) -> Task<void> {
      for (int i = 0; i < 10; ++i) EXPECT_TRUE((co_await operation(channel)).ok());
    });
    EXPECT_GE(took, 45 * kMillisecond);
  }
}

TEST_F(RateLimitTest, AllChannelsOfAllReactorsShareTheLimit) {
  RateLimitDevice device(null_, {.operations_per_second = 1000, .burst_operations = 1});
  const int64_t begin = MonotonicNanoseconds();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      Measure(device, pool_->at(i % 2), [](BlockChannel& channel) { return ReadTimes(channel, 10, 1); });
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(MonotonicNanoseconds() - begin, 38 * kMillisecond);
}

TEST_F(RateLimitTest, WhatMovesNoDataCountsNoBytes) {
  RateLimitDevice device(null_, {.bytes_per_second = 1, .burst_bytes = 1});
  BlockingChannel channel(device, reactor());
  // Were the bytes counted, these would wait for ten seconds each.
  for (int i = 0; i < 1000; ++i) {
    EXPECT_TRUE(channel.Zero(0, kSize).ok());
    EXPECT_TRUE(channel.Discard(0, kSize).ok());
    EXPECT_TRUE(channel.Flush().ok());
    std::vector<Extent> extents;
    EXPECT_TRUE(channel.Extents(0, kSize, &extents).ok());
  }
}

class SlowZeroDevice final : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;
  const BlockTraits& traits() const override { return traits_; }

 private:
  const BlockTraits traits_ = {.fast_zero = false};
};

// Where zeroes are written they count, unless the caller asked to be refused then: that moves nothing.
TEST_F(RateLimitTest, ZeroesThatAreWrittenCountTheirBytes) {
  const auto slow = std::make_shared<SlowZeroDevice>(null_);
  {
    RateLimitDevice device(slow, {.bytes_per_second = 1'000'000, .burst_bytes = 1});
    EXPECT_FALSE(device.traits().fast_zero);
    const int64_t took = Measure(device, reactor(), [](BlockChannel& channel) -> Task<void> {
      for (int i = 0; i < 10; ++i) EXPECT_TRUE((co_await channel.Zero(0, 5000, ZeroFlags::kNone)).ok());
    });
    EXPECT_GE(took, 45 * kMillisecond);
  }
  const auto faulty = std::make_shared<FaultyDevice>(slow);
  faulty->Fail(FaultyDevice::kZero, ENOTSUP);
  RateLimitDevice device(faulty, {.bytes_per_second = 1, .burst_bytes = 1});
  BlockingChannel channel(device, reactor());
  for (const ZeroFlags flags : {ZeroFlags::kFastOnly, ZeroFlags::kFastOnly | ZeroFlags::kNoUnmap}) {
    // Were the bytes counted, these would wait for ten seconds each.
    for (int i = 0; i < 1000; ++i) EXPECT_EQ(channel.Zero(0, 1 << 20, flags), IoResult::Error(ENOTSUP));
  }
}

TEST_F(RateLimitTest, OperationsOfAChannelPassInOrder) {
  RateLimitDevice device(null_, {.operations_per_second = 20'000, .burst_operations = 1});
  std::vector<int> order;
  Measure(device, reactor(), [&](BlockChannel& channel) -> Task<void> {
    Gate gate(reactor());
    for (int i = 0; i < 200; ++i) {
      Spawn([](BlockChannel& out, int id, std::vector<int>* passed, Gate::Holder) -> Task<void> {
        EXPECT_TRUE((co_await out.Flush()).ok());
        passed->push_back(id);
      }(channel, i, &order, gate.Enter()));
    }
    co_await gate.Close();
  });
  ASSERT_EQ(order.size(), 200u);
  for (int i = 0; i < 200; ++i) EXPECT_EQ(order[i], i);
}

// The second of two channels is not kept waiting by the length of the first one's queue.
TEST_F(RateLimitTest, ChannelsTakeTurns) {
  RateLimitDevice device(null_, {.operations_per_second = 2000, .burst_operations = 1});
  std::vector<char> order;
  auto run = [&]() -> Task<void> {
    auto busy = device.OpenChannel(reactor());
    auto late = device.OpenChannel(reactor());
    EXPECT_TRUE(busy.ok() && late.ok());
    Gate gate(reactor());
    auto flush = [](BlockChannel& channel, char name, std::vector<char>* passed, Gate::Holder) -> Task<void> {
      EXPECT_TRUE((co_await channel.Flush()).ok());
      passed->push_back(name);
    };
    for (int i = 0; i < 100; ++i) Spawn(flush(**busy, 'b', &order, gate.Enter()));
    for (int i = 0; i < 10; ++i) Spawn(flush(**late, 'l', &order, gate.Enter()));
    co_await gate.Close();
  };
  RunOn(reactor(), run);
  ASSERT_EQ(order.size(), 110u);
  size_t last_of_late = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (order[i] == 'l') last_of_late = i;
  }
  EXPECT_LT(last_of_late, 40u);
}

TEST_F(RateLimitTest, NewLimitsReachWhatWaits) {
  auto counting = std::make_shared<FaultyDevice>(null_);
  RateLimitDevice device(counting, kStopped);
  EXPECT_EQ(device.limits(), kStopped);
  std::thread reader(
      [&] { Measure(device, reactor(), [](BlockChannel& channel) { return ReadTimes(channel, 100, 1); }); });
  // The first read passes; the second waits, as ninety-eight others would for a minute and a half.
  counting->Hold(FaultyDevice::kRead);
  ASSERT_TRUE(counting->WaitUntilHeld(FaultyDevice::kRead, 1));
  counting->Release(FaultyDevice::kRead);
  device.SetLimits({});
  reader.join();
  EXPECT_EQ(counting->count(FaultyDevice::kRead), 100u);
  EXPECT_EQ(device.limits(), RateLimits{});
}

TEST_F(RateLimitTest, LimitsChangeWhileAllReactorsWork) {
  RateLimitDevice device(null_, {});
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      Measure(device, pool_->at(i), [](BlockChannel& channel) { return ReadTimes(channel, 3000, 512); });
    });
  }
  for (int i = 0; i < 200; ++i) {
    device.SetLimits(i % 2 == 0
                         ? RateLimits{.operations_per_second = 100'000, .bytes_per_second = 100'000'000}
                         : RateLimits{});
  }
  for (std::thread& thread : threads) thread.join();
}

// A task that was made and dropped holds up nobody.
TEST_F(RateLimitTest, AnOperationThatIsNeverAwaited) {
  RateLimitDevice device(null_, {.operations_per_second = 1000, .burst_operations = 1});
  Measure(device, reactor(), [](BlockChannel& channel) -> Task<void> {
    EXPECT_TRUE((co_await channel.Flush()).ok());
    { Task<IoResult> dropped = channel.Flush(); }
    Task<IoResult> second = channel.Flush();
    Task<IoResult> first = channel.Flush();
    EXPECT_TRUE((co_await first).ok());
    EXPECT_TRUE((co_await second).ok());
  });
}

}  // namespace
}  // namespace berth
