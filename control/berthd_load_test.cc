// berthd with clients at work: what it counts, what it says of failing images, and how it stops meanwhile.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "control/berthd_process.h"
#include "image/io/unique_fd.h"

namespace berth::control {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSize = 8 << 20;

void SetDeadline(grpc::ClientContext* context) {
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
}

// The whole answer of an HTTP server on 127.0.0.1.
std::string Get(uint16_t port, const std::string& path) {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const timeval patience = {.tv_sec = 60, .tv_usec = 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) {
    return "no connection";
  }
  std::string answer;
  char piece[4096];
  for (ssize_t n; (n = read(fd.get(), piece, sizeof(piece))) > 0;)
    answer.append(piece, static_cast<size_t>(n));
  return answer;
}

TEST(BerthdLoadTest, MetricsShowTheRequestsOfAnExport) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start({"--metrics=127.0.0.1:0"}));
  ASSERT_TRUE(berthd.CreateRawImage("disk.raw", kSize).ok());
  ASSERT_TRUE(berthd.CreateRawExport("disk", "disk.raw").ok());
  const ProcessResult io = RunProcess(
      {"/usr/bin/qemu-io", "-f", "raw", "-c", "write 0 64k", "-c", "read 0 4k", berthd.Uri("disk")});
  ASSERT_EQ(io.exit_code, 0) << io.output;
  const std::string log = berthd.log();
  uint32_t port = 0;
  const size_t found = log.find("port=", log.find("serving metrics"));
  ASSERT_NE(found, std::string::npos) << log;
  ASSERT_TRUE(absl::SimpleAtoi(log.substr(found + 5, log.find('\n', found) - found - 5), &port)) << log;
  const std::string metrics = Get(static_cast<uint16_t>(port), "/metrics");
  EXPECT_THAT(metrics, HasSubstr("berth_requests_total{export=\"disk\",operation=\"write\"} 1\n"));
  EXPECT_THAT(metrics, HasSubstr("berth_request_bytes_total{export=\"disk\",operation=\"write\"} 65536\n"));
  EXPECT_THAT(metrics,
              HasSubstr("berth_request_duration_seconds_count{export=\"disk\",operation=\"read\"} 1\n"));
  EXPECT_EQ(berthd.Stop(), 0);
}

TEST(BerthdLoadTest, AnImageThatFailsIsToldAndCounted) {
  BerthdProcess berthd;
  ASSERT_TRUE(berthd.Start());
  ASSERT_TRUE(berthd.CreateRawImage("disk.raw", kSize).ok());
  ASSERT_TRUE(berthd.CreateRawExport("disk", "disk.raw").ok());
  const auto monitoring = v1::MonitoringService::NewStub(berthd.channel());
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto stream = monitoring->WatchEvents(&context, v1::WatchEventsRequest());
  stream->WaitForInitialMetadata();
  ASSERT_EQ(truncate((berthd.directory() + "/disk.raw").c_str(), 4096), 0);
  const std::string read = "read 1M 4k";
  const ProcessResult io = RunProcess({"/usr/bin/qemu-io", "-r", "-f", "raw", "-c", read, "-c", read, "-c",
                                       "read 0 512", berthd.Uri("disk")});
  EXPECT_THAT(io.output, HasSubstr("read failed: Input/output error"));
  EXPECT_THAT(io.output, HasSubstr("read 512/512 bytes"));
  v1::Event event;
  while (event.type() != v1::EVENT_TYPE_IO_ERROR) ASSERT_TRUE(stream->Read(&event));
  EXPECT_EQ(event.export_(), "disk");
  EXPECT_THAT(event.message(), HasSubstr("Input/output error"));
  context.TryCancel();
  stream->Finish();

  grpc::ClientContext ask;
  SetDeadline(&ask);
  v1::GetStatisticsRequest request;
  request.set_export_("disk");
  v1::GetStatisticsResponse statistics;
  ASSERT_TRUE(monitoring->GetStatistics(&ask, request, &statistics).ok());
  for (const v1::OperationStatistics& item : statistics.exports(0).operations()) {
    if (item.operation() == v1::IO_OPERATION_READ) {
      EXPECT_EQ(item.errors(), 2u);
    }
  }
}

// Sends a request that the rate limit holds, knows from a later answer that it has arrived, stops berthd, and
// waits for its answer.
constexpr char kStopMeanwhile[] = R"(
import os, signal, sys, nbd
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
h.pread(1 << 20, 0)
held = h.aio_pread(nbd.Buffer(4096), 0)
h.block_status(512, 0, lambda *a: 0)
if sys.argv[2] != "0":
    assert not h.aio_command_completed(held), "not held"
    os.kill(int(sys.argv[2]), signal.SIGTERM)
while not h.aio_command_completed(held):
    h.poll(-1)
)";

class SlowExportTest : public testing::Test {
 protected:
  void SetUp() override {
    // Less than the longest that a rate limit keeps a request.
    ASSERT_TRUE(berthd_.Start({"--stop-timeout=8s"}));
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::CreateExportRequest request;
    request.set_name("slow");
    request.mutable_spec()->mutable_image()->set_format(v1::IMAGE_FORMAT_MEMORY);
    request.mutable_spec()->mutable_image()->set_size_bytes(kSize);
    request.mutable_spec()->mutable_rate_limit()->set_bytes_per_second(1);
    v1::Export created;
    ASSERT_TRUE(
        v1::ExportService::NewStub(berthd_.channel())->CreateExport(&context, request, &created).ok());
  }

  // The client that stops `pid`; or with 0, one that only waits.
  ProcessResult RunClient(pid_t pid) {
    return RunProcess({"/usr/bin/python3", "-c", kStopMeanwhile, berthd_.Uri("slow"), absl::StrCat(pid)},
                      absl::Seconds(60));
  }

  BerthdProcess berthd_;
};

TEST_F(SlowExportTest, AStopAnswersWhatARateLimitHolds) {
  const ProcessResult client = RunClient(berthd_.pid());
  EXPECT_EQ(client.exit_code, 0) << client.output;
  EXPECT_EQ(berthd_.Stop(), 0);
  EXPECT_THAT(berthd_.log(), HasSubstr("INFO stopped"));
}

TEST_F(SlowExportTest, AForcedDeleteDoesNotWaitForARateLimit) {
  ProcessResult client;
  std::thread waiting([this, &client] { client = RunClient(0); });
  // With the answer to its second request the client has two operations behind it.
  const auto monitoring = v1::MonitoringService::NewStub(berthd_.channel());
  bool held = false;
  const absl::Time patience = absl::Now() + absl::Seconds(60);
  while (!held && absl::Now() < patience) {
    grpc::ClientContext ask;
    SetDeadline(&ask);
    v1::GetStatisticsResponse statistics;
    if (!monitoring->GetStatistics(&ask, v1::GetStatisticsRequest(), &statistics).ok()) break;
    for (const v1::OperationStatistics& item : statistics.exports(0).operations()) {
      if (item.operation() == v1::IO_OPERATION_EXTENTS) held = item.completed() > 0;
    }
  }
  EXPECT_TRUE(held);
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::DeleteExportRequest request;
  request.set_name("slow");
  request.set_force(true);
  google::protobuf::Empty empty;
  const grpc::Status deleted =
      v1::ExportService::NewStub(berthd_.channel())->DeleteExport(&context, request, &empty);
  EXPECT_TRUE(deleted.ok()) << deleted.error_message();
  waiting.join();
  EXPECT_EQ(client.exit_code, 0) << client.output;
}

}  // namespace
}  // namespace berth::control
