#include "image/filter/detect_zeroes.h"

#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/fakes/recording_device.h"

namespace berth {
namespace {

using Event = RecordingDevice::Event;
using Kind = RecordingDevice::Kind;

// What one write became.
Event WriteThrough(ZeroDetection detection, const std::vector<uint8_t>& data, WriteFlags flags) {
  auto pool = ReactorPool::Create(1);
  EXPECT_TRUE(pool.ok()) << pool.status();
  const auto below = std::make_shared<RecordingDevice>(*MemoryDevice::Create(1 << 16));
  DetectZeroesDevice device(below, detection);
  BlockingChannel channel(device, (*pool)->at(0));
  EXPECT_TRUE(channel.Write(512, data, flags).ok());
  const std::vector<Event> events = below->TakeEvents();
  EXPECT_EQ(events.size(), 2u);
  return events.empty() ? Event{} : events[0];
}

TEST(DetectZeroesTest, MakesWritesOfZeroesZeroing) {
  for (size_t size : {size_t{1}, size_t{511}, size_t{4096}}) {
    const std::vector<uint8_t> zeroes(size, 0);
    const Event kept = WriteThrough(ZeroDetection::kOn, zeroes, WriteFlags::kNone);
    EXPECT_EQ(kept.kind, Kind::kZero);
    EXPECT_EQ(kept.offset, 512u);
    EXPECT_EQ(kept.length, size);
    EXPECT_TRUE(kept.no_unmap);
    EXPECT_FALSE(kept.fua || kept.fast_only);
    const Event unmapped = WriteThrough(ZeroDetection::kUnmap, zeroes, WriteFlags::kFua);
    EXPECT_EQ(unmapped.kind, Kind::kZero);
    EXPECT_TRUE(unmapped.fua);
    EXPECT_FALSE(unmapped.no_unmap);
  }
}

TEST(DetectZeroesTest, LeavesOtherWritesAsTheyAre) {
  for (size_t place : {size_t{0}, size_t{2000}, size_t{4095}}) {
    std::vector<uint8_t> data(4096, 0);
    data[place] = 1;
    const Event written = WriteThrough(ZeroDetection::kUnmap, data, WriteFlags::kFua);
    EXPECT_EQ(written.kind, Kind::kWrite) << place;
    EXPECT_TRUE(written.fua);
  }
}

}  // namespace
}  // namespace berth
