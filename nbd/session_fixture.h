// SessionTest: a session on one end of a socketpair and a RawClient on the other, over a memory device behind
// one that records and one that fails or holds what a test chooses.
#ifndef BERTH_NBD_SESSION_FIXTURE_H_
#define BERTH_NBD_SESSION_FIXTURE_H_

#include <future>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "nbd/raw_client.h"
#include "nbd/session.h"
#include "tests/fakes/faulty_device.h"
#include "tests/fakes/recording_device.h"

namespace berth::nbd {

class SessionTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = uint64_t{64} << 20;

  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    UseDevice(kSize);
  }

  void TearDown() override {
    if (session_ == nullptr) return;
    client_->Close();
    faulty_->Release(FaultyDevice::kRead);
    faulty_->Release(FaultyDevice::kWrite);
    faulty_->Release(FaultyDevice::kFlush);
    WaitForEnd();
  }

  void UseDevice(uint64_t size) {
    auto memory = MemoryDevice::Create(size);
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
    faulty_ = std::make_shared<FaultyDevice>(memory_);
    recording_ = std::make_shared<RecordingDevice>(faulty_);
    export_ = std::make_shared<Export>();
    export_->device = recording_;
  }

  // Without the fakes, whose operations never complete at once.
  void UseBareDevice() { export_->device = memory_; }

  // With the replies of `negotiated_` and the bounds of `options_`.
  void Start(int socket_buffer = 4 << 20) {
    UniqueFd client, server;
    RawClient::MakePair(&client, &server, socket_buffer);
    client_ = std::make_unique<RawClient>(std::move(client));
    Start(std::move(server));
    if (negotiated_.reply_style != ReplyStyle::kSimple) client_->SetStyle(negotiated_.reply_style);
  }
  void Start(UniqueFd server) {
    negotiated_.served = export_;
    auto ended = std::make_shared<std::promise<void>>();
    end_ = ended->get_future();
    session_ = StartSession(pool_->at(0), MakePlainTransport(pool_->at(0), std::move(server)), negotiated_,
                            options_, [ended] { ended->set_value(); });
  }
  void UseStructuredReplies(ReplyStyle style = ReplyStyle::kStructured) {
    negotiated_.reply_style = style;
    negotiated_.contexts = {{7, kBaseAllocation}};
  }

  // The end of the session so far, for tests that start another.
  std::future<void> TakeEnd() { return std::move(end_); }

  void WaitForEnd() {
    if (!end_.valid()) return;
    ASSERT_EQ(end_.wait_for(std::chrono::seconds(60)), std::future_status::ready)
        << "the session did not end";
    end_ = {};
  }

  // Returns when the reactor has done what it had to do.
  void FinishTurn() {
    RunOn(pool_->at(0), []() -> Task<void> { co_return; });
  }

  // Sends a request and returns the error of its simple reply, whose cookie is checked.
  Error Ask(Command command, uint64_t offset, uint64_t length, uint16_t flags = 0,
            absl::Span<const uint8_t> payload = {}) {
    const uint64_t cookie = next_cookie_++;
    EXPECT_TRUE(client_->Send({flags, command, cookie, offset, length}, payload));
    const SimpleReply reply = client_->ReceiveSimple();
    EXPECT_EQ(reply.cookie, cookie);
    return reply.error;
  }
  // The same where replies are chunks: the first chunk of the reply, which has to be the only one.
  RawClient::Chunk AskChunk(Command command, uint64_t offset, uint64_t length, uint16_t flags = 0,
                            absl::Span<const uint8_t> payload = {}) {
    const uint64_t cookie = next_cookie_++;
    EXPECT_TRUE(client_->Send({flags, command, cookie, offset, length}, payload));
    RawClient::Chunk chunk = client_->ReceiveChunk();
    EXPECT_EQ(chunk.header.cookie, cookie);
    EXPECT_EQ(chunk.header.offset, negotiated_.reply_style == ReplyStyle::kExtended ? offset : 0);
    EXPECT_TRUE(chunk.done());
    return chunk;
  }
  Error Write(uint64_t offset, const std::vector<uint8_t>& data, uint16_t flags = 0) {
    return Ask(Command::kWrite, offset, data.size(), flags, data);
  }
  std::vector<uint8_t> Read(uint64_t offset, size_t length) {
    EXPECT_EQ(Ask(Command::kRead, offset, length), Error::kNone);
    return client_->Receive(length);
  }

  std::unique_ptr<ReactorPool> pool_;
  std::shared_ptr<MemoryDevice> memory_;
  std::shared_ptr<FaultyDevice> faulty_;
  std::shared_ptr<RecordingDevice> recording_;
  std::shared_ptr<Export> export_;
  Negotiated negotiated_;
  SessionOptions options_;
  std::unique_ptr<RawClient> client_;
  std::shared_ptr<Session> session_;
  uint64_t next_cookie_ = 0x1122334455667788;

 private:
  std::future<void> end_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_SESSION_FIXTURE_H_
