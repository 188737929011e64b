#include "control/metrics/metrics_endpoint.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/unique_fd.h"

namespace berth::control {
namespace {

using nbd::Operation;
using testing::HasSubstr;
using testing::Not;

UniqueFd Listen(uint16_t* port) {
  UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  EXPECT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(listen(listener.get(), 1), 0);
  EXPECT_EQ(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  *port = ntohs(address.sin_port);
  return listener;
}

// The answer to GET /metrics, headers included.
std::string Scrape(uint16_t port) {
  const UniqueFd client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval patience = {30, 0};
  setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return "";
  const std::string request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  EXPECT_EQ(send(client.get(), request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (;;) {
    const ssize_t count = recv(client.get(), buffer, sizeof buffer, 0);
    if (count <= 0) return answer;
    answer.append(buffer, static_cast<size_t>(count));
  }
}

// What a live server would be asked for.
class Registry {
 public:
  void Set(MetricsSample sample) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sample_ = std::move(sample);
  }

  MetricsSource Source() {
    return [this] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return sample_;
    };
  }

 private:
  std::mutex mutex_;
  MetricsSample sample_;
};

TEST(MetricsEndpointTest, ShowsWhatThereIsAtTheMomentOfTheScrape) {
  Registry registry;
  auto endpoint = MetricsEndpoint::Start("127.0.0.1:0", registry.Source());
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  ASSERT_NE((*endpoint)->port(), 0);
  EXPECT_THAT(Scrape((*endpoint)->port()), HasSubstr("berth_build_info{version="));

  const auto metrics = std::make_shared<ExportMetrics>();
  metrics->Completed(Operation::kRead, 4096, absl::Microseconds(3), IoResult::Ok());
  metrics->Completed(Operation::kRead, 4096, absl::Milliseconds(3), IoResult::Ok());
  metrics->Completed(Operation::kRead, 4096, absl::Seconds(30), IoResult::Error(EIO));
  registry.Set({{{"disk", 1 << 30, 2, metrics}}, {{"attached", 1}, {"failed", 0}}});
  const std::string answer = Scrape((*endpoint)->port());
  EXPECT_THAT(answer, HasSubstr("HTTP/1.1 200"));
  for (const char* line : {
           "# TYPE berth_requests_total counter\n",
           "\nberth_requests_total{export=\"disk\",operation=\"read\"} 3",
           "\nberth_request_errors_total{export=\"disk\",operation=\"read\"} 1",
           "\nberth_request_bytes_total{export=\"disk\",operation=\"read\"} 8192",
           "# TYPE berth_request_duration_seconds histogram\n",
           "\nberth_request_duration_seconds_count{export=\"disk\",operation=\"read\"} 3",
           "\nberth_request_duration_seconds_sum{export=\"disk\",operation=\"read\"} 30.003003",
           "\nberth_request_duration_seconds_bucket{export=\"disk\",operation=\"read\",le=\"+Inf\"} 3",
           "\nberth_export_size_bytes{export=\"disk\"} 1073741824",
           "\nberth_export_connections{export=\"disk\"} 2",
           "\nberth_attachments{state=\"attached\"} 1",
           "\nberth_attachments{state=\"failed\"} 0",
       }) {
    EXPECT_THAT(answer, HasSubstr(line));
  }
  // Cumulative: 1 up to 2 ms, 2 from 5 ms on.
  EXPECT_THAT(answer, HasSubstr("le=\"0.002\"} 1"));
  EXPECT_THAT(answer, HasSubstr("le=\"0.005\"} 2"));
  EXPECT_THAT(answer, HasSubstr("le=\"10\"} 2"));
  EXPECT_THAT(answer, Not(HasSubstr("operation=\"write\"")));

  registry.Set({});
  EXPECT_THAT(Scrape((*endpoint)->port()), Not(HasSubstr("disk")));
}

TEST(MetricsEndpointTest, EscapesLabelValues) {
  Registry registry;
  registry.Set({{{"a\"} 1\nberth_fake 7\\", 1, 0, nullptr}}, {}});
  auto endpoint = MetricsEndpoint::Start("127.0.0.1:0", registry.Source());
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  const std::string answer = Scrape((*endpoint)->port());
  EXPECT_THAT(answer, HasSubstr("berth_export_size_bytes{export=\"a\\\"} 1\\nberth_fake 7\\\\\"} 1"));
  EXPECT_THAT(answer, Not(HasSubstr("\nberth_fake")));
}

TEST(MetricsEndpointTest, SaysThatAPortIsTaken) {
  uint16_t port = 0;
  const UniqueFd taken = Listen(&port);
  const std::string address = absl::StrCat("127.0.0.1:", port);
  const auto endpoint = MetricsEndpoint::Start(address, [] { return MetricsSample(); });
  EXPECT_EQ(endpoint.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(endpoint.status().message()),
              testing::AllOf(HasSubstr(address), HasSubstr("Address already in use")));
}

TEST(MetricsEndpointTest, RefusesWhatIsNoAddress) {
  for (const char* address : {"", "9843", "127.0.0.1", "127.0.0.1:", ":9843", "127.0.0.1:65536",
                              "127.0.0.1:-1", "127.0.0.1:1,0.0.0.0:2", "127.0.0.1:80s", "::1:9843",
                              "[::1:9843", "300.1.1.1:80", "127.0.0.1:http"}) {
    const auto endpoint = MetricsEndpoint::Start(address, [] { return MetricsSample(); });
    EXPECT_EQ(endpoint.status().code(), absl::StatusCode::kInvalidArgument)
        << "'" << address << "': " << endpoint.status();
    EXPECT_THAT(std::string(endpoint.status().message()), HasSubstr("HOST:PORT")) << address;
  }
}

// 203.0.113.0/24 is nobody's (RFC 5737).
TEST(MetricsEndpointTest, SaysThatAnAddressIsNotThisMachines) {
  const auto endpoint = MetricsEndpoint::Start("203.0.113.1:9843", [] { return MetricsSample(); });
  EXPECT_EQ(endpoint.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(endpoint.status().message()), HasSubstr("203.0.113.1:9843"));
}

}  // namespace
}  // namespace berth::control
