#include "image/io/frame_pool.h"

#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace berth {
namespace {

TEST(FramePoolTest, EverySizeIsAlignedAndItsOwn) {
  std::vector<std::pair<uint8_t*, size_t>> frames;
  for (size_t size = 1; size < 5000; size = size * 5 / 4 + 1) {
    for (int i = 0; i < 3; ++i) {
      auto* frame = static_cast<uint8_t*>(AllocateFrame(size));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(frame) % alignof(std::max_align_t), 0u);
      memset(frame, static_cast<int>(frames.size()), size);
      frames.emplace_back(frame, size);
    }
  }
  for (size_t i = 0; i < frames.size(); ++i) {
    const auto [frame, size] = frames[i];
    for (size_t j = 0; j < size; ++j) ASSERT_EQ(frame[j], static_cast<uint8_t>(i));
    FreeFrame(frame, size);
  }
}

TEST(FramePoolTest, MoreThanAreKept) {
  std::vector<void*> frames;
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 5000; ++i) frames.push_back(AllocateFrame(200));
    for (void* frame : frames) FreeFrame(frame, 200);
    frames.clear();
  }
}

// The threads' ends give back what they kept: the address sanitizer would report the leak, and the free of a
// frame of another thread.
TEST(FramePoolTest, FramesFreedByAnotherThread) {
  std::vector<void*> frames;
  std::thread([&frames] {
    for (int i = 0; i < 1000; ++i) frames.push_back(AllocateFrame(64 * (1 + i % 40)));
  }).join();
  std::thread([&frames] {
    for (int i = 0; i < 1000; ++i) FreeFrame(frames[i], 64 * (1 + i % 40));
    for (int i = 0; i < 100; ++i) FreeFrame(AllocateFrame(64), 64);
  }).join();
}

}  // namespace
}  // namespace berth
