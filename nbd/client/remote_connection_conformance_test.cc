// A RemoteConnection against our own session, held to the contract of every BlockChannel, in each style of
// replies.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "image/io/mutex.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "nbd/capabilities.h"
#include "nbd/client/remote_connection.h"
#include "nbd/raw_client.h"
#include "nbd/session.h"
#include "tests/conformance/block_device_conformance.h"

namespace berth::nbd {
namespace {

// A memory device behind a session; each channel is a connection to it.
class RemoteDevice final : public BlockDevice {
 public:
  RemoteDevice(std::shared_ptr<BlockDevice> device, ReplyStyle style) : style_(style) {
    auto served = std::make_shared<Export>();
    served->device = std::move(device);
    served->multi_connection = true;
    export_ = std::move(served);
    pool_ = ReactorPool::Create(1).value();
  }
  ~RemoteDevice() override {
    MutexLock lock(&mutex_);
    while (running_ > 0) changed_.Wait(&mutex_);
  }

  const BlockTraits& traits() const override { return traits_; }
  uint64_t size() const override { return export_->device->size(); }
  absl::Status Resize(uint64_t) override { return absl::FailedPreconditionError("the size is the server's"); }

  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override {
    UniqueFd own, peer;
    RawClient::MakePair(&own, &peer);
    Negotiated negotiated;
    negotiated.served = export_;
    negotiated.reply_style = style_;
    Connection connection;
    connection.transport = MakePlainTransport(reactor, std::move(own));
    connection.agreement.style = style_;
    connection.agreement.info.size = size();
    if (style_ != ReplyStyle::kSimple) {
      connection.agreement.info.contexts = negotiated.contexts = {{3, kBaseAllocation}};
    }
    connection.agreement.info.flags = TransmissionFlags(*export_, style_, style_ != ReplyStyle::kSimple);
    Add(2);
    auto session = StartSession(pool_->at(0), MakePlainTransport(pool_->at(0), std::move(peer)),
                                std::move(negotiated), {}, [this] { Add(-1); });
    MutexLock lock(&mutex_);
    sessions_.push_back(std::move(session));
    return std::make_unique<Channel>(
        *this, std::make_unique<RemoteConnection>(reactor, std::move(connection), RemoteOptions()));
  }

 private:
  class Channel final : public BlockChannel {
   public:
    Channel(RemoteDevice& device, std::unique_ptr<RemoteConnection> client)
        : device_(device), client_(std::move(client)) {}
    ~Channel() override {
      Spawn([](RemoteDevice& device, std::unique_ptr<RemoteConnection> client) -> Task<void> {
        co_await client->Disconnect();
        EXPECT_TRUE(client->status().ok()) << client->status();
        client.reset();
        device.Add(-1);
      }(device_, std::move(client_)));
    }
    Task<IoResult> Read(uint64_t offset, absl::Span<uint8_t> out) override {
      return client_->Read(offset, out);
    }
    Task<IoResult> Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) override {
      return client_->Write(offset, data, flags);
    }
    Task<IoResult> Flush() override { return client_->Flush(); }
    Task<IoResult> Zero(uint64_t offset, uint64_t length, ZeroFlags flags) override {
      return client_->Zero(offset, length, flags);
    }
    Task<IoResult> Discard(uint64_t offset, uint64_t length) override {
      return client_->Discard(offset, length);
    }
    Task<IoResult> Prefetch(uint64_t offset, uint64_t length) override {
      return client_->Prefetch(offset, length);
    }
    Task<IoResult> Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) override {
      return client_->Extents(offset, length, out);
    }

   private:
    RemoteDevice& device_;
    std::unique_ptr<RemoteConnection> client_;
  };

  void Add(int count) {
    MutexLock lock(&mutex_);
    running_ += count;
    changed_.SignalAll();
  }

  const ReplyStyle style_;
  const BlockTraits traits_ = {.can_discard = true, .fast_zero = true};
  std::shared_ptr<const Export> export_;
  std::unique_ptr<ReactorPool> pool_;  // Of the sessions.
  Mutex mutex_;
  CondVar changed_;
  std::vector<std::shared_ptr<Session>> sessions_ ABSL_GUARDED_BY(mutex_);
  int running_ ABSL_GUARDED_BY(mutex_) = 0;  // Clients and sessions.
};

ConformanceCase Case(const std::string& name, ReplyStyle style) {
  ConformanceCase test_case;
  test_case.name = name;
  test_case.make = [style](uint64_t size) -> absl::StatusOr<std::shared_ptr<BlockDevice>> {
    return std::make_shared<RemoteDevice>(MemoryDevice::Create(size).value(), style);
  };
  return test_case;
}

}  // namespace
}  // namespace berth::nbd

namespace berth {

INSTANTIATE_TEST_SUITE_P(NbdClient, BlockDeviceConformance,
                         testing::Values(nbd::Case("simple", nbd::ReplyStyle::kSimple),
                                         nbd::Case("structured", nbd::ReplyStyle::kStructured),
                                         nbd::Case("extended", nbd::ReplyStyle::kExtended)),
                         [](const auto& info) { return info.param.name; });

}  // namespace berth
