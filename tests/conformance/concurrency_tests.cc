// Many operations at once, from several channels on several reactors.
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "image/io/gate.h"
#include "tests/conformance/block_device_conformance.h"

namespace berth {
namespace {

// A range of the device that one coroutine has to itself.
struct Slot {
  uint64_t begin;
  uint64_t length;
  uint64_t seed;
};

constexpr int kChannelsAReactor = 2;

// Works on `slot` alone and compares it with a model of its own.
Task<void> Work(BlockChannel& channel, Slot slot, bool keeps_data, int steps, Gate::Holder) {
  std::mt19937_64 random(slot.seed);
  ReferenceModel model(slot.length, keeps_data);
  std::vector<uint8_t> buffer(slot.length);
  // Whoever had the slot before left something there.
  EXPECT_TRUE((co_await channel.Zero(slot.begin, slot.length, ZeroFlags::kNone)).ok());
  for (int step = 0; step < steps; ++step) {
    const uint64_t length = 1 + random() % slot.length;
    const uint64_t offset = random() % (slot.length - length + 1);
    const absl::Span<uint8_t> part = absl::MakeSpan(buffer).subspan(0, length);
    const uint64_t choice = random() % 10;
    if (choice < 4) {
      const IoResult result = co_await channel.Read(slot.begin + offset, part);
      EXPECT_TRUE(result.ok()) << "errno " << result.error;
      const testing::AssertionResult agrees = model.Agrees(offset, part);
      EXPECT_TRUE(agrees) << "slot at " << slot.begin << ", seed " << slot.seed << ", step " << step;
      if (!agrees || !result.ok()) co_return;
    } else if (choice < 8) {
      const std::vector<uint8_t> data = PatternBytes(offset, length, random());
      const WriteFlags flags = choice == 4 ? WriteFlags::kFua : WriteFlags::kNone;
      EXPECT_TRUE((co_await channel.Write(slot.begin + offset, data, flags)).ok());
      model.Write(offset, data);
    } else if (choice == 8) {
      const ZeroFlags flags = random() % 2 == 0 ? ZeroFlags::kNone : ZeroFlags::kNoUnmap;
      EXPECT_TRUE((co_await channel.Zero(slot.begin + offset, length, flags)).ok());
      model.Zero(offset, length);
    } else if (random() % 2 == 0) {
      EXPECT_TRUE((co_await channel.Discard(slot.begin + offset, length)).ok());
      model.Discard(offset, length);
    } else {
      EXPECT_TRUE((co_await channel.Flush()).ok());
    }
  }
  EXPECT_TRUE((co_await channel.Read(slot.begin, absl::MakeSpan(buffer))).ok());
  EXPECT_TRUE(model.Agrees(0, buffer))
      << "slot at " << slot.begin << ", seed " << slot.seed << ", at the end";
}

// Works on `slots`, at once, through channels of one reactor, and returns when all is done.
void WorkOnReactor(BlockDevice& device, Reactor& reactor, const std::vector<Slot>& slots, bool keeps_data,
                   int steps) {
  auto run = [&]() -> Task<void> {
    std::vector<std::unique_ptr<BlockChannel>> channels;
    for (int i = 0; i < kChannelsAReactor; ++i) {
      auto channel = device.OpenChannel(reactor);
      EXPECT_TRUE(channel.ok()) << channel.status();
      if (!channel.ok()) co_return;
      channels.push_back(*std::move(channel));
    }
    Gate gate(reactor);
    for (size_t i = 0; i < slots.size(); ++i) {
      Spawn(Work(*channels[i % channels.size()], slots[i], keeps_data, steps, gate.Enter()));
    }
    co_await gate.Close();
  };
  RunOn(reactor, run);
}

// The slots' borders lie inside sectors, pages and clusters: devices that read, modify and write must not
// lose what a neighbour writes meanwhile.
TEST_P(BlockDeviceConformance, ManyAtOnceOnNeighbouringRanges) {
  if (!writable()) return;
  constexpr uint64_t kSlot = 10'007;
  constexpr int kSlots = 48;
  std::vector<std::vector<Slot>> slots(kReactors);
  for (uint64_t i = 0; i < kSlots; ++i) slots[i % kReactors].push_back({i * kSlot, kSlot, Seed() + i});
  std::vector<std::thread> threads;
  for (int i = 0; i < kReactors; ++i) {
    threads.emplace_back(
        [&, i] { WorkOnReactor(*device_, pool_->at(i), slots[i], GetParam().keeps_data, /*steps=*/60); });
  }
  for (std::thread& thread : threads) thread.join();
  // Nobody worked behind the last slot.
  BlockingChannel channel(*device_, pool_->at(0));
  EXPECT_TRUE(InitialModel().Agrees(kSlots * kSlot, channel.Read(kSlots * kSlot, 100'000)));
}

TEST_P(BlockDeviceConformance, ReadsFromAllReactorsAtOnce) {
  const ReferenceModel model = InitialModel();
  std::vector<std::thread> threads;
  for (int i = 0; i < kReactors; ++i) {
    threads.emplace_back([&, i] {
      BlockingChannel channel(*device_, pool_->at(i));
      for (uint64_t offset = 0; offset + 100'003 < size(); offset += 50'021) {
        ASSERT_TRUE(model.Agrees(offset, channel.Read(offset, 100'003)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// More in flight on one channel than any queue below is deep.
TEST_P(BlockDeviceConformance, AThousandInFlightOnOneChannel) {
  constexpr uint64_t kLength = 1500;
  constexpr uint64_t kRequests = 1000;
  const ReferenceModel model = InitialModel();
  Reactor& reactor = pool_->at(0);
  auto run = [&]() -> Task<void> {
    auto channel = device_->OpenChannel(reactor);
    EXPECT_TRUE(channel.ok()) << channel.status();
    if (!channel.ok()) co_return;
    Gate gate(reactor);
    for (uint64_t i = 0; i < kRequests; ++i) {
      Spawn(
          [](BlockChannel& out, const ReferenceModel& expected, uint64_t offset, Gate::Holder) -> Task<void> {
            std::vector<uint8_t> buffer(kLength, 0xee);
            const IoResult result = co_await out.Read(offset, absl::MakeSpan(buffer));
            EXPECT_TRUE(result.ok()) << "errno " << result.error;
            EXPECT_TRUE(expected.Agrees(offset, buffer));
          }(**channel, model, i * kLength, gate.Enter()));
    }
    co_await gate.Close();
  };
  RunOn(reactor, run);
}

TEST_P(BlockDeviceConformance, ResizeWhileInUse) {
  if (!device_->traits().resizable) return;
  const uint64_t half = size() / 2 / 512 * 512;
  std::vector<Slot> slots;
  for (uint64_t i = 0; i < 8; ++i) slots.push_back({i * 20'011, 20'011, Seed() + i});
  std::thread worker(
      [&] { WorkOnReactor(*device_, pool_->at(0), slots, GetParam().keeps_data, /*steps=*/100); });
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(device_->Resize(i % 2 == 0 ? half : size()).ok());
  }
  worker.join();
  EXPECT_EQ(device_->size(), size());
}

}  // namespace
}  // namespace berth
