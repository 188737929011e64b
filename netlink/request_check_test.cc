#include "netlink/request_check.h"

#include <fcntl.h>
#include <linux/nbd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace berth::netlink {
namespace {

using ::testing::HasSubstr;

class RequestCheckTest : public testing::Test {
 protected:
  RequestCheckTest() {
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream_), 0);
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, packets_), 0);
    connect_.size_bytes = 1 << 20;
    connect_.timeout = absl::Seconds(1);
    connect_.sockets = {stream_[0]};
    reconfigure_.index = 3;
  }
  ~RequestCheckTest() override {
    for (const int fd : {stream_[0], stream_[1], packets_[0], packets_[1]}) close(fd);
  }

  std::string Refused(const std::function<void(ConnectRequest&)>& spoil) {
    ConnectRequest request = connect_;
    spoil(request);
    const absl::Status status = CheckConnect(request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }
  std::string RefusedReconfigure(const std::function<void(ReconfigureRequest&)>& spoil) {
    ReconfigureRequest request = reconfigure_;
    spoil(request);
    const absl::Status status = CheckReconfigure(request);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }

  int stream_[2];
  int packets_[2];
  ConnectRequest connect_;
  ReconfigureRequest reconfigure_;
};

TEST_F(RequestCheckTest, GoodRequests) {
  EXPECT_TRUE(CheckConnect(connect_).ok());
  connect_.block_size = 4096;
  connect_.index = 0;
  connect_.server_flags = NBD_FLAG_CAN_MULTI_CONN;
  connect_.sockets = {stream_[0], stream_[1]};
  EXPECT_TRUE(CheckConnect(connect_).ok());
  EXPECT_TRUE(CheckReconfigure(reconfigure_).ok());
  reconfigure_.sockets = {stream_[0]};
  reconfigure_.timeout = absl::Seconds(5);
  EXPECT_TRUE(CheckReconfigure(reconfigure_).ok());
}

TEST_F(RequestCheckTest, Sizes) {
  for (const uint64_t size : {uint64_t{0}, uint64_t{513}, uint64_t{1} << 63}) {
    EXPECT_THAT(Refused([&](ConnectRequest& r) { r.size_bytes = size; }), HasSubstr(std::to_string(size)));
    EXPECT_THAT(RefusedReconfigure([&](ReconfigureRequest& r) { r.size_bytes = size; }),
                HasSubstr(std::to_string(size)));
  }
  for (const uint32_t block : {0u, 256u, 1000u, 8192u, 1u << 31}) {
    EXPECT_THAT(Refused([&](ConnectRequest& r) { r.block_size = block; }), HasSubstr(std::to_string(block)));
    EXPECT_THAT(RefusedReconfigure([&](ReconfigureRequest& r) { r.block_size = block; }),
                HasSubstr(std::to_string(block)));
  }
}

TEST_F(RequestCheckTest, Timeouts) {
  const absl::Duration wrong[] = {absl::ZeroDuration(), absl::Milliseconds(1500), -absl::Seconds(1),
                                  absl::Hours(25), absl::InfiniteDuration()};
  for (const absl::Duration timeout : wrong) {
    EXPECT_THAT(Refused([&](ConnectRequest& r) { r.timeout = timeout; }), HasSubstr("timeout"));
    EXPECT_THAT(RefusedReconfigure([&](ReconfigureRequest& r) { r.timeout = timeout; }),
                HasSubstr("timeout"));
    if (timeout == absl::ZeroDuration()) continue;
    EXPECT_THAT(Refused([&](ConnectRequest& r) { r.dead_connection_timeout = timeout; }),
                HasSubstr("dead_connection_timeout"));
  }
}

TEST_F(RequestCheckTest, Indexes) {
  EXPECT_THAT(Refused([](ConnectRequest& r) { r.index = 0xffffffff; }), HasSubstr("4294967295"));
  EXPECT_THAT(RefusedReconfigure([](ReconfigureRequest& r) { r.index = 0x80000000; }),
              HasSubstr("2147483648"));
}

TEST_F(RequestCheckTest, Sockets) {
  EXPECT_THAT(Refused([](ConnectRequest& r) { r.sockets.clear(); }), HasSubstr("without a socket"));
  EXPECT_THAT(Refused([&](ConnectRequest& r) { r.sockets.push_back(stream_[1]); }),
              HasSubstr("NBD_FLAG_CAN_MULTI_CONN"));
  EXPECT_THAT(Refused([&](ConnectRequest& r) { r.sockets = {packets_[0]}; }), HasSubstr("stream"));
  EXPECT_THAT(Refused([](ConnectRequest& r) { r.sockets = {-1}; }), HasSubstr("-1"));
  EXPECT_THAT(Refused([&](ConnectRequest& r) {
                r.server_flags = NBD_FLAG_CAN_MULTI_CONN;
                r.sockets.assign(257, stream_[0]);
              }),
              HasSubstr("257"));
  EXPECT_THAT(RefusedReconfigure([&](ReconfigureRequest& r) { r.sockets = {packets_[0]}; }),
              HasSubstr("stream"));
}

TEST_F(RequestCheckTest, NeverSizeAndSocketsTogether) {
  EXPECT_THAT(RefusedReconfigure([&](ReconfigureRequest& r) {
                r.sockets = {stream_[0]};
                r.size_bytes = 1 << 20;
              }),
              HasSubstr("resize afterwards"));
  RefusedReconfigure([&](ReconfigureRequest& r) {
    r.sockets = {stream_[0]};
    r.block_size = 4096;
  });
}

TEST_F(RequestCheckTest, Identifiers) {
  Refused([](ConnectRequest& r) { r.backend_identifier = "two\nlines"; });
  Refused([](ConnectRequest& r) { r.backend_identifier = std::string("nul\0", 4); });
  Refused([](ConnectRequest& r) { r.backend_identifier = std::string(1025, 'x'); });
  RefusedReconfigure([](ReconfigureRequest& r) { r.backend_identifier = "\x7f"; });
}

}  // namespace
}  // namespace berth::netlink
