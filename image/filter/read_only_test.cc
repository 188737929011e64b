#include "image/filter/read_only.h"

#include <cerrno>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/fakes/faulty_device.h"

namespace berth {
namespace {

TEST(ReadOnlyTest, NoChangeReachesTheNextDevice) {
  auto pool = ReactorPool::Create(1);
  ASSERT_TRUE(pool.ok()) << pool.status();
  std::shared_ptr<BlockDevice> memory = *MemoryDevice::Create(4096);
  auto counting = std::make_shared<FaultyDevice>(memory);
  ReadOnlyDevice device(counting);
  EXPECT_TRUE(device.traits().read_only);
  EXPECT_FALSE(device.traits().can_discard);
  EXPECT_FALSE(device.traits().fast_zero);
  EXPECT_TRUE(counting->traits().can_discard);
  EXPECT_FALSE(counting->traits().read_only);
  EXPECT_EQ(device.size(), 4096u);
  EXPECT_EQ(device.Resize(8192).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(memory->size(), 4096u);

  BlockingChannel channel(device, (*pool)->at(0));
  EXPECT_EQ(channel.Write(0, std::vector<uint8_t>(10, 1)), IoResult::Error(EPERM));
  EXPECT_EQ(channel.Zero(0, 10), IoResult::Error(EPERM));
  EXPECT_EQ(channel.Discard(0, 10), IoResult::Error(EPERM));
  EXPECT_EQ(counting->count(FaultyDevice::kWrite), 0u);
  EXPECT_EQ(counting->count(FaultyDevice::kZero), 0u);
  EXPECT_EQ(counting->count(FaultyDevice::kDiscard), 0u);

  EXPECT_TRUE(channel.Flush().ok());
  EXPECT_EQ(counting->count(FaultyDevice::kFlush), 1u);
  EXPECT_EQ(channel.Read(0, 3), (std::vector<uint8_t>{0, 0, 0}));
}

}  // namespace
}  // namespace berth
