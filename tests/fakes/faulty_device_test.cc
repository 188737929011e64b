#include "tests/fakes/faulty_device.h"

#include <cerrno>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "tests/conformance/block_device_conformance.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/fakes/recording_device.h"

namespace berth {
namespace {

using Kind = RecordingDevice::Kind;
using Phase = RecordingDevice::Phase;

TEST(FaultyDeviceTest, FailsWhatWasChosen) {
  auto pool = ReactorPool::Create(1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  FaultyDevice device(*MemoryDevice::Create(4096));
  BlockingChannel channel(device, (*pool)->at(0));
  const std::vector<uint8_t> data(10, 1);
  device.Fail(FaultyDevice::kWrite, ENOSPC, /*times=*/2, /*after=*/1);
  EXPECT_TRUE(channel.Write(0, data).ok());
  EXPECT_EQ(channel.Write(10, data), IoResult::Error(ENOSPC));
  EXPECT_EQ(channel.Write(20, data), IoResult::Error(ENOSPC));
  EXPECT_TRUE(channel.Write(30, data).ok());
  EXPECT_EQ(channel.Read(5, 30), (std::vector<uint8_t>{1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                                       0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1}));
  EXPECT_EQ(device.count(FaultyDevice::kWrite), 4u);
  device.Fail(FaultyDevice::kFlush, EIO);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(channel.Flush(), IoResult::Error(EIO));
  device.Fail(FaultyDevice::kFlush, 0, /*times=*/0);
  EXPECT_TRUE(channel.Flush().ok());
}

TEST(FaultyDeviceTest, HoldsUntilReleased) {
  auto pool = ReactorPool::Create(1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  auto recording = std::make_shared<RecordingDevice>(*MemoryDevice::Create(4096));
  FaultyDevice device(recording);
  BlockingChannel channel(device, (*pool)->at(0));
  device.Hold(FaultyDevice::kWrite);
  EXPECT_FALSE(device.WaitUntilHeld(FaultyDevice::kWrite, 1, absl::ZeroDuration()));
  std::thread writer(
      [&] { EXPECT_TRUE(channel.Write(0, std::vector<uint8_t>(10, 1), WriteFlags::kFua).ok()); });
  ASSERT_TRUE(device.WaitUntilHeld(FaultyDevice::kWrite, 1));
  EXPECT_TRUE(recording->TakeEvents().empty());
  device.Release(FaultyDevice::kWrite);
  writer.join();
  EXPECT_TRUE(channel.Flush().ok());
  const std::vector<RecordingDevice::Event> events = recording->TakeEvents();
  ASSERT_EQ(events.size(), 4u);
  EXPECT_TRUE(events[0].kind == Kind::kWrite && events[0].phase == Phase::kStart && events[0].fua)
      << events[0];
  EXPECT_TRUE(events[1].kind == Kind::kWrite && events[1].phase == Phase::kEnd &&
              events[1].id == events[0].id)
      << events[1];
  EXPECT_TRUE(events[2].kind == Kind::kFlush && events[2].phase == Phase::kStart && !events[2].fua)
      << events[2];
  EXPECT_TRUE(events[3].kind == Kind::kFlush && events[3].phase == Phase::kEnd) << events[3];
}

INSTANTIATE_TEST_SUITE_P(Faulty, BlockDeviceConformance,
                         testing::Values(ConformanceCase{
                             .name = "faulty without faults over recording",
                             .make = [](uint64_t size) -> absl::StatusOr<std::shared_ptr<BlockDevice>> {
                               auto memory = MemoryDevice::Create(size);
                               if (!memory.ok()) return memory.status();
                               return std::make_shared<FaultyDevice>(
                                   std::make_shared<RecordingDevice>(*std::move(memory)));
                             }}));

}  // namespace
}  // namespace berth
