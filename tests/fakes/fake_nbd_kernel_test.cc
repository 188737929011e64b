#include "tests/fakes/fake_nbd_kernel.h"

#include <endian.h>
#include <linux/nbd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "gtest/gtest.h"

namespace berth {
namespace {

using netlink::ConnectRequest;
using netlink::ReconfigureRequest;

constexpr uint64_t kSize = 1 << 20;

struct Pair {
  Pair() {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    kernel = ends[0];
    server = ends[1];
  }
  ~Pair() {
    CloseKernel();
    CloseServer();
  }
  void CloseKernel() {
    if (kernel >= 0) close(kernel);
    kernel = -1;
  }
  void CloseServer() {
    if (server >= 0) close(server);
    server = -1;
  }
  int kernel = -1;
  int server = -1;
};

ConnectRequest RequestFor(const std::vector<int>& sockets) {
  ConnectRequest request;
  request.size_bytes = kSize;
  request.server_flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_CAN_MULTI_CONN;
  request.timeout = absl::Seconds(5);
  request.backend_identifier = "mine";
  request.sockets = sockets;
  return request;
}

// Collects dead links; Wait() returns the first that was not yet taken.
class DeadLinks {
 public:
  void Add(uint32_t index) {
    std::lock_guard<std::mutex> lock(mutex_);
    seen_.push_back(index);
    changed_.notify_all();
  }
  uint32_t Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !seen_.empty(); });
    const uint32_t index = seen_.front();
    seen_.erase(seen_.begin());
    return index;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<uint32_t> seen_;
};

TEST(FakeNbdKernelTest, ChoosesTheFirstFreeDeviceAndAddsMore) {
  FakeNbdKernel kernel(1);
  Pair a, b;
  EXPECT_EQ(*kernel.Connect(RequestFor({a.kernel})), 0u);
  EXPECT_EQ(*kernel.Connect(RequestFor({b.kernel})), 1u);
  EXPECT_EQ(kernel.ListDevices()->size(), 2u);
  EXPECT_EQ(kernel.ConnectedDevices(), 2u);
}

TEST(FakeNbdKernelTest, RefusesATakenDevice) {
  FakeNbdKernel kernel;
  kernel.ConnectForeign(3, kSize, "theirs");
  kernel.Hold(4);
  Pair pair;
  ConnectRequest request = RequestFor({pair.kernel});
  for (const uint32_t index : {3u, 4u}) {
    request.index = index;
    EXPECT_EQ(kernel.Connect(request).status().code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(kernel.Inspect(3)->backend_identifier, "theirs");
}

TEST(FakeNbdKernelTest, DisconnectSaysGoodbyeAndHangsUp) {
  FakeNbdKernel kernel;
  Pair pair;
  const uint32_t index = *kernel.Connect(RequestFor({pair.kernel}));
  pair.CloseKernel();
  ASSERT_TRUE(kernel.Disconnect(index).ok());
  nbd_request request;
  ASSERT_EQ(recv(pair.server, &request, sizeof(request), MSG_WAITALL), static_cast<ssize_t>(sizeof(request)));
  EXPECT_EQ(be32toh(request.type), static_cast<uint32_t>(NBD_CMD_DISC));
  EXPECT_EQ(recv(pair.server, &request, sizeof(request), 0), 0);
  EXPECT_TRUE(kernel.Inspect(index)->IsFree());
}

TEST(FakeNbdKernelTest, HeldDeviceStaysUntilReleased) {
  FakeNbdKernel kernel;
  Pair pair;
  const uint32_t index = *kernel.Connect(RequestFor({pair.kernel}));
  kernel.Hold(index, "fio (pid 7)");
  ASSERT_TRUE(kernel.Disconnect(index).ok());
  EXPECT_EQ(kernel.Inspect(index)->size_bytes, kSize);
  const absl::Status held = kernel.WaitUntilFree(index, absl::ZeroDuration());
  EXPECT_EQ(held.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(held.message().find("fio (pid 7)"), absl::string_view::npos) << held;
  std::thread release([&] { kernel.Release(index); });
  EXPECT_TRUE(kernel.WaitUntilFree(index, absl::Minutes(1)).ok());
  release.join();
  EXPECT_TRUE(kernel.Inspect(index)->IsFree());
}

TEST(FakeNbdKernelTest, NoticesADeadServerAndTakesFreshSockets) {
  FakeNbdKernel kernel;
  DeadLinks dead;
  ASSERT_TRUE(kernel.WatchDeadLinks([&](uint32_t index) { dead.Add(index); }).ok());
  Pair a, b, fresh, spare;
  const uint32_t index = *kernel.Connect(RequestFor({a.kernel, b.kernel}));
  b.CloseServer();
  EXPECT_EQ(dead.Wait(), index);
  EXPECT_EQ(kernel.LiveSockets(index), 1u);

  ReconfigureRequest repair;
  repair.index = index;
  repair.backend_identifier = "theirs";
  repair.sockets = {fresh.kernel, spare.kernel};
  EXPECT_EQ(kernel.Reconfigure(repair).code(), absl::StatusCode::kFailedPrecondition);
  repair.backend_identifier = "mine";
  EXPECT_TRUE(kernel.Reconfigure(repair).ok());
  EXPECT_EQ(kernel.LiveSockets(index), 2u);
  // The one too many was dropped.
  spare.CloseKernel();
  char byte;
  EXPECT_EQ(recv(spare.server, &byte, 1, 0), 0);
}

TEST(FakeNbdKernelTest, WaitUntilUsableReadsTheLastSector) {
  FakeNbdKernel kernel;
  Pair pair;
  const uint32_t index = *kernel.Connect(RequestFor({pair.kernel}));
  std::thread server([&] {
    nbd_request request;
    ASSERT_EQ(recv(pair.server, &request, sizeof(request), MSG_WAITALL),
              static_cast<ssize_t>(sizeof(request)));
    EXPECT_EQ(be64toh(request.from), kSize - 512);
    std::array<char, sizeof(nbd_reply) + 512> answer = {};
    nbd_reply reply = {};
    reply.magic = htobe32(NBD_REPLY_MAGIC);
    memcpy(&reply.handle, &request.handle, sizeof(reply.handle));
    memcpy(answer.data(), &reply, sizeof(reply));
    ASSERT_EQ(send(pair.server, answer.data(), answer.size(), 0), static_cast<ssize_t>(answer.size()));
  });
  EXPECT_TRUE(kernel.WaitUntilUsable(index, kSize, absl::Minutes(1)).ok());
  server.join();
}

TEST(FakeNbdKernelTest, FailsOnRequest) {
  FakeNbdKernel kernel;
  Pair pair;
  kernel.FailNext(FakeNbdKernel::Call::kConnect, absl::PermissionDeniedError("no"));
  EXPECT_EQ(kernel.Connect(RequestFor({pair.kernel})).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(kernel.ConnectedDevices(), 0u);
  kernel.LoseNextConnectAnswer(absl::DeadlineExceededError("late"));
  EXPECT_EQ(kernel.Connect(RequestFor({pair.kernel})).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(kernel.ConnectedDevices(), 1u);
}

}  // namespace
}  // namespace berth
