// Clients that come in numbers. FloodOfConnections in hostile_client_test is about those of all addresses.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/hostile/hostile_fixture.h"

namespace berth::testing {
namespace {

using HostileFloodTest = HostileTest;

// One address has its share, and the others theirs; Unix sockets have no address.
TEST_F(HostileFloodTest, AnAddressHasItsShare) {
  nbd::ServerOptions options = Patient();
  options.max_connections_per_address = 5;
  Start(options);
  std::vector<ByteClient> held;
  for (int i = 0; i < 5; ++i) {
    held.emplace_back(server_->ipv4_port());
    ASSERT_TRUE(i % 2 == 0 ? held.back().Enter() : held.back().Greet());
  }
  for (int i = 0; i < 300; ++i) EXPECT_TRUE(ByteClient(server_->ipv4_port()).HangsUp());
  EXPECT_EQ(server_->server().statistics().over_limit, 300u);
  EXPECT_TRUE(held[0].Reads());
  ByteClient neighbour(server_->ipv4_port(), "127.0.0.2");
  EXPECT_TRUE(neighbour.Enter());
  EXPECT_TRUE(neighbour.Reads());
  for (int i = 0; i < 10; ++i) ExpectOthersAreServed();
  // Who leaves makes room.
  held[1].Close();
  const absl::Time patience = absl::Now() + absl::Seconds(30);
  bool served = false;
  while (!served && absl::Now() < patience) served = ByteClient(server_->ipv4_port()).Enter();
  EXPECT_TRUE(served);
}

// Thousands that come and go at once leave nothing behind.
TEST_F(HostileFloodTest, ThousandsComeAndGo) {
  Start();
  for (int i = 0; i < 3000; ++i) {
    ByteClient client = Connect();
    if (i % 3 == 0) client.Send(U32(3));
    if (i % 3 == 1) client.Send(U32(3) + Go("disk"));
  }
  ExpectOthersAreServed();
  ExpectNobodyIsLeft();
  ExpectGrowthBelow(size_t{16} << 20);
}

// All places taken by clients that only hold them: they lose them at the deadline, and new ones are served.
TEST_F(HostileFloodTest, PlacesAreNotHeldForever) {
  nbd::ServerOptions options = Patient();
  options.max_connections = 20;
  options.handshake_timeout = absl::Milliseconds(300);
  Start(options);
  std::vector<ByteClient> idle;
  for (int i = 0; i < 20; ++i) idle.push_back(Connect());
  for (ByteClient& client : idle) EXPECT_TRUE(client.HangsUp());
  ExpectNobodyIsLeft();
}

}  // namespace
}  // namespace berth::testing
