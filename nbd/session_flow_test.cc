// Order, bounds and ends: what a session does with clients that are slow, hostile or gone.
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <atomic>
#include <set>
#include <thread>

#include "absl/time/clock.h"
#include "image/block/block_device.h"
#include "nbd/buffer_pool.h"
#include "nbd/session.h"
#include "nbd/session_fixture.h"

namespace berth::nbd {
namespace {

using SessionFlowTest = SessionTest;

std::vector<uint8_t> Encode(const Request& request) {
  std::vector<uint8_t> bytes(kRequestSize);
  EncodeRequest(request, absl::MakeSpan(bytes));
  return bytes;
}

void Append(std::vector<uint8_t>* to, const std::vector<uint8_t>& bytes) {
  to->insert(to->end(), bytes.begin(), bytes.end());
}

// ---- Order.

TEST_F(SessionFlowTest, RepliesLeaveInTheOrderOfCompletion) {
  Start();
  faulty_->Hold(FaultyDevice::kRead);
  ASSERT_TRUE(client_->Send({0, Command::kRead, 1, 0, 4096}));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kRead, 1));
  ASSERT_TRUE(client_->Send({0, Command::kWrite, 2, 0, 4096}, Pattern(4096, 5)));
  EXPECT_EQ(client_->ReceiveSimple().cookie, 2u);
  ASSERT_TRUE(client_->Send({0, Command::kFlush, 3, 0, 0}));
  EXPECT_EQ(client_->ReceiveSimple().cookie, 3u);
  faulty_->Release(FaultyDevice::kRead);
  EXPECT_EQ(client_->ReceiveSimple().cookie, 1u);
  EXPECT_EQ(client_->Receive(4096), Pattern(4096, 5));
}

TEST_F(SessionFlowTest, HeldWritesKeepTheirDataWhileOthersAreServed) {
  Start();
  faulty_->Hold(FaultyDevice::kWrite);
  constexpr uint64_t kWrites = 200;
  std::vector<uint8_t> message;
  for (uint64_t i = 0; i < kWrites; ++i) {
    const std::vector<uint8_t> data = Pattern(4096 + (i % 3) * 20'000, static_cast<uint8_t>(i));
    Append(&message, Encode({0, Command::kWrite, i, i << 16, data.size()}));
    Append(&message, data);
  }
  ASSERT_TRUE(client_->Send(message));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kWrite, kWrites));
  for (int i = 0; i < 500; ++i) ASSERT_EQ(Read(uint64_t{32} << 20, 4096), std::vector<uint8_t>(4096));
  faulty_->Release(FaultyDevice::kWrite);
  std::set<uint64_t> answered;
  for (uint64_t i = 0; i < kWrites; ++i) {
    const SimpleReply reply = client_->ReceiveSimple();
    EXPECT_EQ(reply.error, Error::kNone);
    answered.insert(reply.cookie);
  }
  EXPECT_EQ(answered.size(), kWrites);
  for (uint64_t i = 0; i < kWrites; ++i) {
    const std::vector<uint8_t> data = Pattern(4096 + (i % 3) * 20'000, static_cast<uint8_t>(i));
    ASSERT_EQ(Read(i << 16, data.size()), data) << i;
  }
}

// ---- Clients that lie, wait or leave.

TEST_F(SessionFlowTest, AWrongMagicNumberEndsTheSession) {
  Start();
  std::vector<uint8_t> message = Encode({0, Command::kRead, 1, 0, 512});
  message[0] = 0;
  ASSERT_TRUE(client_->Send(message));
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
  EXPECT_EQ(session_->end_reason().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SessionFlowTest, AWriteOfFourGibibytesEndsTheSession) {
  Start();
  ASSERT_TRUE(client_->Send({0, Command::kWrite, 1, 0, 0xffffffff}));
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
  EXPECT_EQ(session_->end_reason().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SessionFlowTest, HalfARequestKeepsNobodyWaiting) {
  Start();
  std::unique_ptr<RawClient> slow = std::move(client_);
  const std::shared_ptr<Session> slow_session = session_;
  const std::vector<uint8_t> request = Encode({0, Command::kRead, 1, 0, 512});
  ASSERT_TRUE(slow->Send(absl::MakeConstSpan(request).first(13)));
  auto slow_ended = TakeEnd();

  Start();
  EXPECT_EQ(Write(0, Pattern(512, 1)), Error::kNone);
  EXPECT_EQ(Read(0, 512), Pattern(512, 1));

  ASSERT_TRUE(slow->Send(absl::MakeConstSpan(request).subspan(13)));
  EXPECT_EQ(slow->ReceiveSimple().cookie, 1u);
  EXPECT_EQ(slow->Receive(512), Pattern(512, 1));
  slow->Close();
  EXPECT_EQ(slow_ended.wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_TRUE(slow_session->end_reason().ok());
}

TEST_F(SessionFlowTest, TheEndOfStreamBetweenRequestsIsNoError) {
  Start();
  EXPECT_EQ(Write(0, Pattern(512, 1)), Error::kNone);
  client_->Close();
  WaitForEnd();
  EXPECT_TRUE(session_->end_reason().ok()) << session_->end_reason();
  EXPECT_EQ(export_.use_count(), 2) << "negotiated_ of the test has the other";
}

TEST_F(SessionFlowTest, TheEndOfStreamInARequestIsAnError) {
  for (const size_t part : {size_t{5}, kRequestSize, kRequestSize + 100}) {
    for (const size_t length : {size_t{512}, size_t{100'000}}) {
      Start();
      std::vector<uint8_t> message = Encode({0, Command::kWrite, 1, 0, length});
      message.resize(part);
      ASSERT_TRUE(client_->Send(message));
      client_->Close();
      WaitForEnd();
      EXPECT_EQ(session_->end_reason().code(), absl::StatusCode::kAborted);
    }
  }
  EXPECT_EQ(faulty_->count(FaultyDevice::kWrite), 0u);
}

TEST_F(SessionFlowTest, ADisconnectWaitsForWhatRuns) {
  Start();
  faulty_->Hold(FaultyDevice::kWrite);
  ASSERT_TRUE(client_->Send({0, Command::kWrite, 1, 0, 512}, Pattern(512, 1)));
  ASSERT_TRUE(client_->Send({0, Command::kDisconnect, 2, 0, 0}));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kWrite, 1));
  FinishTurn();
  EXPECT_TRUE(client_->Quiet());
  faulty_->Release(FaultyDevice::kWrite);
  EXPECT_EQ(client_->ReceiveSimple().cookie, 1u);
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
  EXPECT_TRUE(session_->end_reason().ok());
}

TEST_F(SessionFlowTest, NothingIsServedAfterADisconnect) {
  Start();
  std::vector<uint8_t> message = Encode({0, Command::kDisconnect, 1, 0, 0});
  Append(&message, Encode({0, Command::kRead, 2, 0, 512}));
  ASSERT_TRUE(client_->Send(message));
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
  EXPECT_EQ(faulty_->count(FaultyDevice::kRead), 0u);
}

TEST_F(SessionFlowTest, ASessionOutlivesItsClientUntilTheDeviceIsDone) {
  Start();
  faulty_->Hold(FaultyDevice::kRead);
  faulty_->Hold(FaultyDevice::kWrite);
  for (uint64_t i = 0; i < 20; ++i) {
    ASSERT_TRUE(client_->Send({0, Command::kRead, i, 0, 100'000}));
    ASSERT_TRUE(client_->Send({0, Command::kWrite, i, i * 65536, 65536}, Pattern(65536, 1)));
  }
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kRead, 20));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kWrite, 20));
  client_->Close();
  session_->Abort();
  FinishTurn();
  EXPECT_GT(export_.use_count(), 2) << "the session ended with requests in the device";
  faulty_->Release(FaultyDevice::kRead);
  faulty_->Release(FaultyDevice::kWrite);
  WaitForEnd();
  EXPECT_EQ(export_.use_count(), 2);
}

TEST_F(SessionFlowTest, AClientThatLeavesUnreadRepliesBehind) {
  Start(4096);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(client_->Send({0, Command::kRead, 1, 0, 1 << 20}));
  EXPECT_EQ(client_->ReceiveSimple().error, Error::kNone);
  client_->Close();
  WaitForEnd();
}

// ---- Bounds.

TEST_F(SessionFlowTest, NoMoreRequestsRunThanMay) {
  options_.max_requests_in_flight = 8;
  Start();
  faulty_->Hold(FaultyDevice::kRead);
  std::vector<uint8_t> message;
  for (uint64_t i = 0; i < 100; ++i) Append(&message, Encode({0, Command::kRead, i, 0, 512}));
  ASSERT_TRUE(client_->Send(message));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kRead, 8));
  FinishTurn();
  EXPECT_EQ(faulty_->count(FaultyDevice::kRead), 8u);
  faulty_->Release(FaultyDevice::kRead);
  std::set<uint64_t> answered;
  for (int i = 0; i < 100; ++i) {
    answered.insert(client_->ReceiveSimple().cookie);
    client_->Receive(512);
  }
  EXPECT_EQ(answered.size(), 100u);
}

TEST_F(SessionFlowTest, NoMoreBytesAreHeldThanMay) {
  options_.max_bytes_in_flight = 1 << 20;
  Start();
  faulty_->Hold(FaultyDevice::kRead);
  std::vector<uint8_t> message;
  for (uint64_t i = 0; i < 50; ++i) Append(&message, Encode({0, Command::kRead, i, 0, 256 << 10}));
  ASSERT_TRUE(client_->Send(message));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kRead, 3));
  FinishTurn();
  EXPECT_EQ(faulty_->count(FaultyDevice::kRead), 3u);
  faulty_->Release(FaultyDevice::kRead);
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(client_->ReceiveSimple().error, Error::kNone);
    client_->Receive(256 << 10);
  }
}

TEST_F(SessionFlowTest, OneRequestAboveTheLimitIsServedAlone) {
  options_.max_bytes_in_flight = 1;
  Start();
  const std::vector<uint8_t> data = Pattern(kMaxPayload, 1);
  EXPECT_EQ(Write(0, data), Error::kNone);
  EXPECT_EQ(Read(0, data.size()), data);
}

TEST_F(SessionFlowTest, AtTheLimitNoMoreIsRead) {
  constexpr size_t kLimit = 2 << 20;
  options_.max_bytes_in_flight = kLimit;
  constexpr int kSocketBuffer = 256 << 10;
  Start(kSocketBuffer);
  faulty_->Hold(FaultyDevice::kWrite);
  std::vector<uint8_t> message;
  std::vector<uint8_t> data = Pattern(4096, 1);
  for (uint64_t i = 0; i < 2000; ++i) {
    Append(&message, Encode({0, Command::kWrite, i, i * 4096, 4096}));
    Append(&message, data);
  }
  // Until neither the session nor the socket takes more.
  size_t taken = 0;
  for (int refused = 0; refused < 10;) {
    const size_t sent = client_->SendWithoutWaiting(absl::MakeConstSpan(message).subspan(taken));
    taken += sent;
    refused = sent > 0 ? 0 : refused + 1;
    FinishTurn();
  }
  EXPECT_GT(taken, kLimit / 2);
  // The kernel doubles SO_SNDBUF for its own book-keeping.
  EXPECT_LT(taken, kLimit + 3 * kSocketBuffer);
  faulty_->Release(FaultyDevice::kWrite);
  ASSERT_TRUE(client_->Send(absl::MakeConstSpan(message).subspan(taken)));
  std::set<uint64_t> answered;
  for (uint64_t i = 0; i < 2000; ++i) answered.insert(client_->ReceiveSimple().cookie);
  EXPECT_EQ(answered.size(), 2000u);
}

TEST_F(SessionFlowTest, AClientThatDoesNotReadStopsItselfOnly) {
  options_.max_bytes_in_flight = 4 << 20;
  Start(64 << 10);
  std::unique_ptr<RawClient> slow = std::move(client_);
  auto slow_ended = TakeEnd();
  const std::shared_ptr<Session> slow_session = session_;
  constexpr uint64_t kReads = 64;
  for (uint64_t i = 0; i < kReads; ++i) ASSERT_TRUE(slow->Send({0, Command::kRead, i, i << 20, 1 << 20}));

  Start();
  EXPECT_EQ(Write(5 << 20, Pattern(512, 5)), Error::kNone);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(Read(0, 4096).size(), 4096u);
  // What was sent into the socket is more than nothing, and far less than a reply.
  EXPECT_LE(faulty_->count(FaultyDevice::kRead), 100u + 4u);

  for (uint64_t i = 0; i < kReads; ++i) {
    EXPECT_EQ(slow->ReceiveSimple().error, Error::kNone);
    slow->Receive(1 << 20);
  }
  slow->Close();
  EXPECT_EQ(slow_ended.wait_for(std::chrono::seconds(60)), std::future_status::ready);
}

TEST_F(SessionFlowTest, AnIdleConnectionGivesItsMemoryBack) {
  options_.idle_after = absl::Milliseconds(1);
  Start();
  const std::vector<uint8_t> data = Pattern(1 << 20, 1);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(Write(0, data), Error::kNone);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(Read(0, data.size()), data);
  const auto unused = [this] {
    return RunOn(pool_->at(0), []() -> Task<size_t> { co_return BufferPool::OfThisThread().unused_bytes(); });
  };
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (unused() > 0 && absl::Now() < deadline) std::this_thread::yield();
  EXPECT_EQ(unused(), 0u);
  EXPECT_EQ(Read(0, data.size()), data);
}

// ---- Stop.

TEST_F(SessionFlowTest, StopEndsAnIdleSession) {
  Start();
  EXPECT_EQ(Write(0, Pattern(512, 1)), Error::kNone);
  session_->Stop();
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
  EXPECT_TRUE(session_->end_reason().ok()) << session_->end_reason();
  session_->Stop();
  session_->Abort();
}

TEST_F(SessionFlowTest, StopEndsASessionWithHalfARequest) {
  Start();
  ASSERT_TRUE(client_->Send(absl::MakeConstSpan(Encode({0, Command::kRead, 1, 0, 512})).first(20)));
  session_->Stop();
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
}

TEST_F(SessionFlowTest, StopAnswersWhatRunsAndRefusesTheRest) {
  Start();
  faulty_->Hold(FaultyDevice::kRead);
  for (uint64_t i = 0; i < 5; ++i) ASSERT_TRUE(client_->Send({0, Command::kRead, i, 0, 512}));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kRead, 5));
  session_->Stop();
  FinishTurn();
  EXPECT_EQ(Ask(Command::kRead, 0, 512), Error::kShutdown);
  EXPECT_EQ(Write(0, Pattern(100'000, 1)), Error::kShutdown);
  EXPECT_EQ(faulty_->count(FaultyDevice::kWrite), 0u);
  faulty_->Release(FaultyDevice::kRead);
  for (uint64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(client_->ReceiveSimple().error, Error::kNone);
    client_->Receive(512);
  }
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
  EXPECT_TRUE(session_->end_reason().ok()) << session_->end_reason();
}

// An answer would be an I/O error of the file system on the device; without one the kernel asks again later.
TEST_F(SessionFlowTest, StopLeavesWhatTheKernelStillSendsUnanswered) {
  options_.refuse_while_stopping = false;
  Start();
  faulty_->Hold(FaultyDevice::kRead);
  for (uint64_t i = 0; i < 5; ++i) ASSERT_TRUE(client_->Send({0, Command::kRead, i, 0, 512}));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kRead, 5));
  session_->Stop();
  FinishTurn();
  ASSERT_TRUE(client_->Send({0, Command::kRead, 5, 0, 512}));
  ASSERT_TRUE(client_->Send({0, Command::kWrite, 6, 0, 100'000}, Pattern(100'000, 1)));
  faulty_->Release(FaultyDevice::kRead);
  for (uint64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(client_->ReceiveSimple().error, Error::kNone);
    client_->Receive(512);
  }
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
  EXPECT_EQ(faulty_->count(FaultyDevice::kWrite), 0u);
}

TEST_F(SessionFlowTest, StopDoesNotWaitForAClientThatDoesNotRead) {
  options_.stop_timeout = absl::Milliseconds(1);
  Start(4096);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(client_->Send({0, Command::kRead, 1, 0, 1 << 20}));
  EXPECT_EQ(client_->ReceiveSimple().error, Error::kNone);
  session_->Stop();
  WaitForEnd();
}

TEST_F(SessionFlowTest, StopDoesNotWaitForAClientThatSendsWithoutEnd) {
  options_.stop_timeout = absl::Milliseconds(1);
  Start();
  std::thread flood([&] {
    std::vector<uint8_t> message;
    for (int i = 0; i < 1000; ++i) Append(&message, Encode({0, Command::kFlush, 1, 0, 0}));
    std::vector<uint8_t> replies(1 << 20);
    while (client_->Send(message)) {
      while (recv(client_->fd(), replies.data(), replies.size(), MSG_DONTWAIT) > 0) {
      }
    }
  });
  session_->Stop();
  WaitForEnd();
  flood.join();
}

TEST_F(SessionFlowTest, AbortLosesRepliesAndEnds) {
  Start(4096);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(client_->Send({0, Command::kRead, 1, 0, 1 << 20}));
  EXPECT_EQ(client_->ReceiveSimple().error, Error::kNone);
  session_->Abort();
  WaitForEnd();
}

TEST_F(SessionFlowTest, StopUnderLoadAnswersEverythingItServed) {
  for (int round = 0; round < 20; ++round) {
    if (round % 2 == 0) UseBareDevice();
    Start();
    std::atomic<uint64_t> replies = 0;
    std::thread load([&] {
      std::set<uint64_t> asked;
      uint64_t cookie = 0;
      bool served = true;
      while (true) {
        std::vector<uint8_t> message;
        for (int i = 0; i < 16; ++i) {
          asked.insert(cookie);
          Append(&message, Encode({0, Command::kWrite, cookie++, 4096, 512}));
          Append(&message, std::vector<uint8_t>(512, 1));
        }
        if (!client_->Send(message)) break;
        for (int i = 0; i < 16; ++i) {
          uint8_t bytes[kSimpleReplySize];
          if (recv(client_->fd(), bytes, sizeof(bytes), MSG_WAITALL) != ssize_t{kSimpleReplySize}) return;
          SimpleReply reply;
          ASSERT_TRUE(DecodeSimpleReply(bytes, &reply));
          ASSERT_EQ(asked.erase(reply.cookie), 1u) << "answered twice, or never asked";
          ASSERT_TRUE(reply.error == Error::kNone || reply.error == Error::kShutdown);
          ASSERT_TRUE(served || reply.error == Error::kShutdown) << "served after a refusal";
          served = reply.error == Error::kNone;
          ++replies;
        }
      }
    });
    while (replies < 64) std::this_thread::yield();
    session_->Stop();
    WaitForEnd();
    load.join();
    EXPECT_TRUE(session_->end_reason().ok()) << session_->end_reason();
  }
}

// ---- Beginnings.

TEST_F(SessionFlowTest, AnUnopenedChannelEndsTheSession) {
  class Closed final : public BlockDevice {
   public:
    const BlockTraits& traits() const override { return traits_; }
    uint64_t size() const override { return kSize; }
    absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor&) override {
      return absl::ResourceExhaustedError("no more channels");
    }
    absl::Status Resize(uint64_t) override { return absl::FailedPreconditionError("not resizable"); }

   private:
    const BlockTraits traits_ = {};
  };
  export_->device = std::make_shared<Closed>();
  Start();
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
  EXPECT_EQ(session_->end_reason(), absl::ResourceExhaustedError("no more channels"));
}

TEST_F(SessionFlowTest, ServesOverTcpAndOnANonBlockingSocket) {
  UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  ASSERT_EQ(listen(listener.get(), 1), 0);
  UniqueFd client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(connect(client.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  UniqueFd server(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  ASSERT_TRUE(server);
  client_ = std::make_unique<RawClient>(std::move(client));
  Start(std::move(server));
  const std::vector<uint8_t> data = Pattern(8 << 20, 1);
  EXPECT_EQ(Write(0, data), Error::kNone);
  EXPECT_EQ(Read(0, data.size()), data);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(Read(0, 4096).size(), 4096u);
}

TEST_F(SessionFlowTest, TheKernelsSessionNeedsNoHandshake) {
  UniqueFd client, server;
  RawClient::MakePair(&client, &server);
  client_ = std::make_unique<RawClient>(std::move(client));
  std::promise<void> ended;
  const std::shared_ptr<Session> session =
      StartKernelSession(pool_->at(0), std::move(server), export_, options_, [&] { ended.set_value(); });
  EXPECT_EQ(Write(0, Pattern(512, 1)), Error::kNone);
  EXPECT_EQ(Read(0, 512), Pattern(512, 1));
  ASSERT_TRUE(client_->Send({0, Command::kDisconnect, 1, 0, 0}));
  EXPECT_EQ(ended.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_TRUE(client_->AtEnd());
}

}  // namespace
}  // namespace berth::nbd
