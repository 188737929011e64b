// ClientTest: a RemoteConnection on one end of a socketpair, and the server's end in the test's hands.
#ifndef BERTH_NBD_CLIENT_CLIENT_FIXTURE_H_
#define BERTH_NBD_CLIENT_CLIENT_FIXTURE_H_

#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "nbd/client/hex_bytes.h"
#include "nbd/client/remote_connection.h"
#include "nbd/raw_client.h"

namespace berth::nbd {

class ClientTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = uint64_t{1} << 40;
  static constexpr uint16_t kAllFlags = 0x0ded;  // All that a server of today says, without READ_ONLY.

  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    info_.size = kSize;
    info_.flags = kAllFlags;
    info_.contexts = {{7, kBaseAllocation}};
  }

  void TearDown() override {
    if (client_ == nullptr) return;
    peer_->Close();
    Disconnect();
    RunOn(reactor(), [this]() -> Task<void> {
      client_.reset();
      co_return;
    });
  }

  Reactor& reactor() { return pool_->at(0); }

  // Into the transmission phase of `info_`.
  void Start(ReplyStyle style, int socket_buffer = 4 << 20) {
    UniqueFd peer, own;
    RawClient::MakePair(&peer, &own, socket_buffer);
    peer_ = std::make_unique<RawClient>(std::move(peer));
    RunOn(reactor(), [&]() -> Task<void> {
      Connection connection;
      connection.transport = MakePlainTransport(reactor(), std::move(own));
      connection.agreement = {info_, style};
      client_ = std::make_unique<RemoteConnection>(reactor(), std::move(connection), options_);
      co_return;
    });
  }
  void Restart(ReplyStyle style) {
    TearDown();
    Start(style);
  }
  void Disconnect() {
    if (disconnected_.valid()) return disconnected_.wait();
    RunOn(reactor(), [this] { return client_->Disconnect(); });
  }
  void BeginDisconnect() {
    disconnected_ = Begin([](RemoteConnection& client) -> Task<IoResult> {
                      co_await client.Disconnect();
                      co_return IoResult::Ok();
                    }).share();
  }

  // Starts `operation`, a Task<IoResult> of a RemoteConnection&.
  template <typename Operation>
  std::future<IoResult> Begin(Operation operation) {
    auto promise = std::make_shared<std::promise<IoResult>>();
    reactor().Post([this, promise, operation] {
      Spawn([](RemoteConnection& client, Operation run,
               std::shared_ptr<std::promise<IoResult>> ended) -> Task<void> {
        const IoResult result = co_await run(client);
        ended->set_value(result);
      }(*client_, operation, promise));
    });
    return promise->get_future();
  }
  std::future<IoResult> BeginRead(uint64_t offset, std::vector<uint8_t>* out) {
    return Begin(
        [offset, out](RemoteConnection& client) { return client.Read(offset, absl::MakeSpan(*out)); });
  }
  std::future<IoResult> BeginStatus(uint64_t offset, uint64_t length, std::vector<ContextStatus>* out,
                                    bool one = false, std::vector<uint32_t> ids = {}) {
    auto kept = std::make_shared<std::vector<uint32_t>>(std::move(ids));
    return Begin(
        [=](RemoteConnection& client) { return client.BlockStatus(offset, length, one, *kept, out); });
  }

  // What the client sends next.
  std::string Received(size_t size) {
    const std::vector<uint8_t> bytes = peer_->Receive(size);
    return std::string(bytes.begin(), bytes.end());
  }
  void Send(absl::string_view bytes) {
    EXPECT_TRUE(peer_->Send({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}));
  }
  static int ErrorOf(std::future<IoResult>& result) {
    if (result.wait_for(std::chrono::seconds(60)) != std::future_status::ready) {
      ADD_FAILURE() << "no end";
      return -1;
    }
    return result.get().error;
  }
  absl::Status Status() {
    return RunOn(reactor(), [this] { return Task<absl::Status>(client_->status()); });
  }
  RequestFailure LastFailure() {
    return RunOn(reactor(), [this] { return Task<RequestFailure>(client_->last_failure()); });
  }
  // That the connection came to an end, and why.
  void ExpectBroken(absl::StatusCode code, absl::string_view text) {
    const absl::Status status = Status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(std::string(text)));
  }

  std::unique_ptr<ReactorPool> pool_;
  ExportInfo info_;
  RemoteOptions options_;
  std::unique_ptr<RawClient> peer_;
  std::unique_ptr<RemoteConnection> client_;

 private:
  std::shared_future<IoResult> disconnected_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_CLIENT_FIXTURE_H_
