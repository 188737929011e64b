#include "nbd/reply_queue.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>

#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"

namespace berth::nbd {
namespace {

// Takes as many bytes a call as the test says, and -EAGAIN or an error where it says so.
class ScriptedTransport final : public Transport {
 public:
  explicit ScriptedTransport(Reactor& reactor) : reactor_(reactor) {}

  Task<int> Receive(absl::Span<const iovec>) override { return Task<int>(-EBADF); }
  int TryReceive(absl::Span<const iovec>) override { return -EBADF; }
  void CancelReceive() override {}
  void Shutdown() override { shut_down = true; }

  int TrySend(absl::Span<const iovec> vectors) override {
    ++calls;
    if (take.empty()) return Take(vectors, SIZE_MAX);
    const int next = take.front();
    take.pop_front();
    return next < 0 ? next : Take(vectors, static_cast<size_t>(next));
  }
  Task<int> Send(absl::Span<const iovec> vectors) override {
    co_await reactor_.Yield();
    co_return TrySend(vectors);
  }

  std::deque<int> take;  // Bytes, or -errno, call by call; then everything.
  std::vector<uint8_t> sent;
  int calls = 0;
  bool shut_down = false;

 private:
  int Take(absl::Span<const iovec> vectors, size_t most) {
    size_t taken = 0;
    for (const iovec& vector : vectors) {
      const size_t count = std::min(vector.iov_len, most - taken);
      const auto* bytes = static_cast<const uint8_t*>(vector.iov_base);
      sent.insert(sent.end(), bytes, bytes + count);
      taken += count;
    }
    return static_cast<int>(taken);
  }

  Reactor& reactor_;
};

class ReplyQueueTest : public testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }

  // Runs `body` on the reactor, with a queue, and waits until all has left.
  template <typename Body>
  void Run(Body body) {
    RunOn(pool_->at(0), [&]() -> Task<void> {
      Gate gate(pool_->at(0));
      transport_ = std::make_unique<ScriptedTransport>(pool_->at(0));
      ReplyQueue queue(*transport_, gate, [this](size_t replies) { left_ += replies; });
      queue_ = &queue;
      body();
      co_await gate.Close();
      error_ = queue.error();
    });
    EXPECT_EQ(held_, 0u) << "payloads that are not released";
  }

  void Add(size_t header, size_t payload) {
    ++added_;
    Buffer buffer;
    if (payload > 0) {
      buffer = BufferPool::OfThisThread().Allocate(payload, &held_);
      memset(buffer.data(), 100 + added_, payload);
    }
    memset(queue_->Add(header, std::move(buffer), payload), added_, header);
    expected_.insert(expected_.end(), header, static_cast<uint8_t>(added_));
    expected_.insert(expected_.end(), payload, static_cast<uint8_t>(100 + added_));
  }

  std::unique_ptr<ReactorPool> pool_;
  std::unique_ptr<ScriptedTransport> transport_;
  ReplyQueue* queue_ = nullptr;
  size_t held_ = 0;
  int added_ = 0;
  size_t left_ = 0;
  int error_ = 0;
  std::vector<uint8_t> expected_;
};

TEST_F(ReplyQueueTest, SendsEverythingInOneCall) {
  Run([&] {
    for (int i = 0; i < 30; ++i) Add(16, i % 3 == 0 ? 4096 : 0);
    queue_->Flush();
    EXPECT_EQ(transport_->calls, 1);
    EXPECT_EQ(left_, 30u);
    queue_->Flush();
    EXPECT_EQ(transport_->calls, 1) << "there was nothing to send";
  });
  EXPECT_EQ(transport_->sent, expected_);
}

TEST_F(ReplyQueueTest, GoesOnWhereTheSocketStopped) {
  for (const int step : {1, 7, 16, 17, 100, 5000}) {
    added_ = 0;
    left_ = 0;
    expected_.clear();
    Run([&] {
      for (int i = 0; i < 5000; i += step) transport_->take.push_back(step);
      for (int i = 0; i < 10; ++i) Add(i % 4 == 1 ? 28 : 16, i % 3 == 0 ? 333 : 0);
      queue_->Flush();
    });
    EXPECT_EQ(transport_->sent, expected_) << step;
    EXPECT_EQ(left_, 10u) << step;
  }
}

TEST_F(ReplyQueueTest, WaitsForTheSocketAndCollectsMeanwhile) {
  Run([&] {
    transport_->take = {10, -EAGAIN, 25, -EAGAIN, 3};
    // The ring's send does not return -EAGAIN; the second one stands for an interrupted try without waiting.
    transport_->take[3] = 1;
    for (int i = 0; i < 4; ++i) Add(16, 200);
    queue_->Flush();
    EXPECT_EQ(left_, 0u);
    for (int i = 0; i < 4; ++i) {
      Add(16, 200);
      queue_->Flush();
    }
    EXPECT_EQ(left_, 0u) << "overtook what waits";
  });
  EXPECT_EQ(transport_->sent, expected_);
  EXPECT_EQ(left_, 8u);
}

TEST_F(ReplyQueueTest, ReleasesPayloadsAsTheyLeave) {
  Run([&] {
    transport_->take = {3 * (16 + 4096), -EAGAIN};
    for (int i = 0; i < 4; ++i) Add(16, 4096);
    queue_->Flush();
    EXPECT_EQ(held_, 4096u);
  });
}

TEST_F(ReplyQueueTest, ABrokenConnectionDropsReplies) {
  for (const bool waits : {false, true}) {
    left_ = 0;
    Run([&] {
      if (waits) transport_->take.push_back(-EAGAIN);
      transport_->take.push_back(-EPIPE);
      for (int i = 0; i < 4; ++i) Add(16, 4096);
      queue_->Flush();
      Add(16, 100);
      queue_->Flush();
    });
    EXPECT_EQ(left_, 5u);
    EXPECT_EQ(error_, EPIPE);
    EXPECT_TRUE(transport_->shut_down);
    EXPECT_TRUE(transport_->sent.empty());
  }
}

TEST_F(ReplyQueueTest, MoreRepliesThanACallTakes) {
  Run([&] {
    for (int i = 0; i < 100; ++i) {
      for (int j = 0; j < 20; ++j) Add(16, 64);
      added_ = 0;
    }
    queue_->Flush();
  });
  EXPECT_EQ(transport_->sent, expected_);
  EXPECT_EQ(left_, 2000u);
}

}  // namespace
}  // namespace berth::nbd
