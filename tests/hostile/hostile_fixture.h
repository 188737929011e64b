// HostileTest: a server with one reactor, so that whoever stalls it stalls everybody, and its memory.
#ifndef BERTH_TESTS_HOSTILE_HOSTILE_FIXTURE_H_
#define BERTH_TESTS_HOSTILE_HOSTILE_FIXTURE_H_

#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "image/null/null_device.h"
#include "tests/fixture/test_server.h"
#include "tests/hostile/byte_client.h"

namespace berth::testing {

// What the process has in memory, server and test together, in bytes.
inline size_t ResidentBytes() {
  size_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// Sanitizers keep what was freed, and shadows of all of it.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kMemoryTellsNothing = true;
#else
inline constexpr bool kMemoryTellsNothing = false;
#endif

class HostileTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kSize = uint64_t{1} << 30;

  // What these clients do is not a matter of time, however slow the machine.
  static nbd::ServerOptions Patient() {
    nbd::ServerOptions options;
    options.handshake_timeout = absl::Minutes(5);
    return options;
  }

  void Start(const nbd::ServerOptions& options = Patient()) {
    TestServerOptions test_options;
    test_options.device = std::make_shared<NullDevice>(kSize);
    test_options.reactors = 1;
    test_options.server = options;
    auto server = TestServer::Start(test_options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    // Whatever is allocated once is there after the first client; a short deadline may cut that one off.
    const absl::Time patience = absl::Now() + absl::Seconds(30);
    while (!Connect().Enter() && absl::Now() < patience) {
    }
    ExpectNobodyIsLeft();
    resident_ = ResidentBytes();
  }

  ByteClient Connect() { return ByteClient(server_->socket_path()); }

  void ExpectOthersAreServed() {
    ByteClient other = Connect();
    EXPECT_TRUE(other.Enter());
    EXPECT_TRUE(other.Reads());
  }

  // Whoever came since Start() has made the process no larger than this.
  void ExpectGrowthBelow(size_t bytes) {
    if (kMemoryTellsNothing) return;
    const size_t now = ResidentBytes();
    EXPECT_LT(now, resident_ + bytes) << "it was " << resident_;
  }

  // Waits until all connections but so many have ended.
  void ExpectNobodyIsLeftBut(size_t count) {
    const absl::Time patience = absl::Now() + absl::Seconds(30);
    while (server_->server().statistics().connections > count && absl::Now() < patience) usleep(1000);
    EXPECT_EQ(server_->server().statistics().connections, count);
  }
  void ExpectNobodyIsLeft() { ExpectNobodyIsLeftBut(0); }

  std::unique_ptr<TestServer> server_;

 private:
  size_t resident_ = 0;
};

}  // namespace berth::testing

#endif  // BERTH_TESTS_HOSTILE_HOSTILE_FIXTURE_H_
