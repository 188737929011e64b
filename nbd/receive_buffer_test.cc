#include "nbd/receive_buffer.h"

#include <cstring>
#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

class ReceiveBufferTest : public testing::Test {
 protected:
  // Receives `count` bytes, or as many as there is space for, continuing the stream 0, 1, 2 … 250, 0, …
  size_t Receive(size_t count) {
    const absl::Span<uint8_t> space = buffer_.PrepareSpace();
    EXPECT_FALSE(space.empty());
    count = std::min(count, space.size());
    for (size_t i = 0; i < count; ++i) space[i] = static_cast<uint8_t>(received_++ % 251);
    buffer_.Commit(count);
    return count;
  }
  // Expects the bytes to continue the stream, and consumes them.
  void Consume(size_t count) {
    ASSERT_LE(count, buffer_.size());
    for (size_t i = 0; i < count; ++i) ASSERT_EQ(buffer_.bytes()[i], consumed_++ % 251);
    buffer_.Consume(count);
  }

  BufferPool pool_;
  size_t held_ = 0;
  ReceiveBuffer buffer_{pool_, &held_};
  uint64_t received_ = 0;
  uint64_t consumed_ = 0;
};

TEST_F(ReceiveBufferTest, IsSmallUntilAReceiveFillsIt) {
  EXPECT_EQ(held_, ReceiveBuffer::kIdleSize);
  Receive(100);
  Consume(100);
  Receive(ReceiveBuffer::kIdleSize - 1);
  Consume(1000);
  EXPECT_FALSE(buffer_.busy());
  Receive(SIZE_MAX);
  EXPECT_EQ(buffer_.NeededForSpace(), ReceiveBuffer::kBusySize);
  Receive(SIZE_MAX);
  EXPECT_TRUE(buffer_.busy());
  EXPECT_EQ(held_, ReceiveBuffer::kBusySize);
  Consume(buffer_.size());
  buffer_.ShrinkToIdle();
  EXPECT_FALSE(buffer_.busy());
  EXPECT_EQ(held_, ReceiveBuffer::kIdleSize);
}

TEST_F(ReceiveBufferTest, ShrinkingKeepsWhatWasReceived) {
  for (int i = 0; i < 2; ++i) Receive(SIZE_MAX);
  Consume(buffer_.size() - 777);
  buffer_.ShrinkToIdle();
  EXPECT_EQ(held_, ReceiveBuffer::kIdleSize);
  Consume(777);
}

TEST_F(ReceiveBufferTest, PinnedBytesStay) {
  Receive(8000);
  const uint8_t* const bytes = buffer_.bytes().data();
  const std::string copy(reinterpret_cast<const char*>(bytes), 4000);
  Consume(4000);
  Buffer pin = buffer_.Pin();
  for (int i = 0; i < 100; ++i) {
    Receive(20'000);
    Consume(buffer_.size() / 2);
  }
  EXPECT_EQ(memcmp(bytes, copy.data(), copy.size()), 0);
  EXPECT_EQ(held_, ReceiveBuffer::kIdleSize + ReceiveBuffer::kBusySize);
  pin = Buffer();
  EXPECT_EQ(held_, ReceiveBuffer::kBusySize);
}

TEST_F(ReceiveBufferTest, TheStreamIsWholeWhateverIsPinned) {
  Buffer pins[5];
  uint32_t random = 1;
  for (int i = 0; i < 5000; ++i) {
    random = random * 1664525 + 1013904223;
    Receive((random >> 8) % 70'000);
    if ((random & 3) == 0) pins[i % 5] = buffer_.Pin();
    // A request's worth may stay.
    if (buffer_.size() > 20'000) Consume(buffer_.size() - (random >> 8) % 20'000);
    if ((random & 63) == 1 && buffer_.size() < ReceiveBuffer::kIdleSize) buffer_.ShrinkToIdle();
  }
  EXPECT_LE(held_, 6 * ReceiveBuffer::kBusySize);
}

TEST(BufferPoolTest, CountsWhatIsHeld) {
  BufferPool pool;
  size_t held = 0;
  Buffer first = pool.Allocate(1, &held);
  EXPECT_EQ(held, 4096u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.data()) % 4096, 0u);
  {
    Buffer second = first;
    EXPECT_TRUE(first.shared());
    EXPECT_EQ(held, 4096u);
    Buffer third = pool.Allocate(BufferPool::kMaxSize, &held);
    EXPECT_EQ(third.capacity(), BufferPool::kMaxSize);
    EXPECT_EQ(held, 4096u + BufferPool::kMaxSize);
  }
  EXPECT_FALSE(first.shared());
  EXPECT_EQ(held, 4096u);
  first = Buffer();
  EXPECT_EQ(held, 0u);
  pool.Trim();
  EXPECT_EQ(pool.unused_bytes(), 0u);
}

TEST(BufferPoolTest, KeepsABoundedAmount) {
  BufferPool pool;
  size_t held = 0;
  {
    Buffer buffers[8];
    for (Buffer& buffer : buffers) buffer = pool.Allocate(BufferPool::kMaxSize, &held);
    EXPECT_EQ(held, 8 * BufferPool::kMaxSize);
  }
  EXPECT_LE(pool.unused_bytes(), size_t{64} << 20);
  Buffer buffer = pool.Allocate(5000, &held);
  pool.Trim();
  EXPECT_EQ(pool.unused_bytes(), 0u);
  memset(buffer.data(), 1, buffer.capacity());
  buffer = Buffer();
  EXPECT_EQ(held, 0u);
}

}  // namespace
}  // namespace berth::nbd
