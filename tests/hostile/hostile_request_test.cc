// Clients that lie about lengths, ask and do not listen, or begin and do not end.
#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/hostile/hostile_fixture.h"

namespace berth::testing {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();

using HostileRequestTest = HostileTest;

// Lengths up to 2^64, which are no payload: an error, for every command, and nothing else.
TEST_F(HostileRequestTest, ExtendedLengthsThatLie) {
  Start();
  ByteClient client = Connect();
  ASSERT_TRUE(client.EnterExtended());
  for (uint16_t command : {0, 1, 3, 4, 5, 6, 7, 8, 9, 0xffff}) {
    for (uint64_t length : {kSize + 1, uint64_t{1} << 32, uint64_t{1} << 63, kMost - 511, kMost}) {
      for (uint64_t offset : {uint64_t{0}, kSize - 1, kSize, uint64_t{1} << 63, kMost - 511, kMost}) {
        SCOPED_TRACE(::testing::Message() << command << " " << offset << "+" << length);
        ASSERT_TRUE(client.Send(ExtendedRequest(command, offset, length)));
        const int error = client.ExtendedError();
        // EINVAL, ENOSPC or EOVERFLOW; EPERM for NBD_CMD_RESIZE, which is not allowed here.
        ASSERT_TRUE(error == 22 || error == 28 || error == 75 || (error == 1 && command == 8)) << error;
      }
    }
  }
  ExpectGrowthBelow(16 * kMiB);
  ExpectOthersAreServed();
}

// Payloads up to 2^64 bytes are hung up on; those up to 32 MiB that nobody wants are read past.
TEST_F(HostileRequestTest, ExtendedPayloadsThatLie) {
  Start();
  for (uint16_t command : {0, 1, 2, 3, 6, 7, 99}) {
    for (uint64_t length : {uint64_t{32 * kMiB + 1}, uint64_t{1} << 32, uint64_t{1} << 63, kMost}) {
      ByteClient client = Connect();
      ASSERT_TRUE(client.EnterExtended());
      ASSERT_TRUE(client.Send(ExtendedRequest(command, 0, length, kPayloadLength)));
      EXPECT_TRUE(client.HangsUp()) << command << " with " << length;
    }
  }
  ByteClient client = Connect();
  ASSERT_TRUE(client.EnterExtended());
  const std::string payload(3 * kMiB, '\0');
  for (uint16_t command : {0, 3, 4, 5, 6, 7, 99}) {
    // In it a length of 0 and contexts by the hundred thousand, where it is a block status.
    ASSERT_TRUE(client.Send(ExtendedRequest(command, 0, payload.size(), kPayloadLength) + payload));
    EXPECT_EQ(client.ExtendedError(), 22) << command;
  }
  ExpectGrowthBelow(48 * kMiB);
  ExpectOthersAreServed();
}

// A payload that is announced and does not come keeps nobody waiting, and no memory that was not filled.
TEST_F(HostileRequestTest, PayloadsThatDoNotCome) {
  Start();
  std::vector<ByteClient> waiting;
  for (int i = 0; i < 64; ++i) {
    waiting.push_back(Connect());
    if (i % 2 == 0) {
      ASSERT_TRUE(waiting.back().Enter());
      ASSERT_TRUE(waiting.back().Send(Request(1, 0, 32 * kMiB) + std::string(40'000, 'w')));
    } else {
      ASSERT_TRUE(waiting.back().EnterExtended());
      ASSERT_TRUE(waiting.back().Send(ExtendedRequest(1, 0, 32 * kMiB, kPayloadLength) + "w"));
    }
  }
  ExpectOthersAreServed();
  ExpectGrowthBelow(64 * kMiB);
  for (ByteClient& client : waiting) client.Close();
  ExpectNobodyIsLeft();
}

// Thirty clients want 64 MiB each and read nothing; what they hold is what they may.
TEST_F(HostileRequestTest, SlowReadersHoldWhatTheyMay) {
  nbd::ServerOptions options = Patient();
  options.session.max_bytes_in_flight = kMiB;
  Start(options);
  std::vector<ByteClient> slow;
  for (int i = 0; i < 30; ++i) {
    slow.push_back(Connect());
    ASSERT_TRUE(i % 2 == 0 ? slow.back().Enter() : slow.back().EnterExtended());
    std::string many;
    for (int request = 0; request < 256; ++request) {
      many += i % 2 == 0 ? Request(0, 0, 256 << 10) : ExtendedRequest(0, 0, 256 << 10);
    }
    slow.back().SendSome(many);
  }
  for (int i = 0; i < 20; ++i) ExpectOthersAreServed();
  ExpectGrowthBelow(30 * 2 * kMiB);
  // They were not forgotten.
  EXPECT_EQ(slow[0].Receive(16 + (256 << 10)).size(), 16u + (256 << 10));
}

// Small requests without end from a client that does not listen: it is stopped, not served on and on.
TEST_F(HostileRequestTest, TinyRequestsWithoutEnd) {
  Start();
  for (const bool extended : {false, true}) {
    ByteClient deaf = Connect();
    ASSERT_TRUE(extended ? deaf.EnterExtended() : deaf.Enter());
    std::string many;
    // Of no length, past the end, and unknown: the cheapest there are.
    for (int i = 0; i < 1000; ++i) {
      for (const auto& [command, offset, length] : {std::make_tuple(uint16_t{4}, uint64_t{0}, 0u),
                                                    {uint16_t{0}, kSize, 1u},
                                                    {uint16_t{77}, uint64_t{0}, 0u}}) {
        many += extended ? ExtendedRequest(command, offset, length) : Request(command, offset, length);
      }
    }
    size_t sent = 0;
    for (int refused = 0; refused < 20;) {
      // From the middle of a request on, where the last one was cut.
      const size_t taken = deaf.SendSome(absl::string_view(many).substr(sent % many.size()));
      sent += taken;
      refused = taken > 0 ? 0 : refused + 1;
      if (taken == 0) ExpectOthersAreServed();
      ASSERT_LT(sent, 256 * kMiB) << "it is served without listening";
    }
    ExpectGrowthBelow(16 * kMiB);
    // Every request that arrived whole has one answer, once the client listens.
    const size_t whole = sent / (extended ? 32 : 28);
    if (!extended) {
      EXPECT_EQ(deaf.Receive(whole * 16).size(), whole * 16);
    }
    deaf.Close();
  }
  ExpectNobodyIsLeft();
}

// Block statuses by the thousand, of everything, unread.
TEST_F(HostileRequestTest, BlockStatusesByTheThousand) {
  nbd::ServerOptions options = Patient();
  options.session.max_bytes_in_flight = kMiB;
  Start(options);
  std::vector<ByteClient> clients;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(Connect());
    ASSERT_TRUE(clients.back().EnterExtended());
    std::string many;
    for (int request = 0; request < 2000; ++request) many += ExtendedRequest(7, 0, kSize);
    clients.back().SendSome(many);
  }
  ExpectOthersAreServed();
  ExpectGrowthBelow(20 * 2 * kMiB);
  EXPECT_EQ(clients[0].ExtendedError(), 0);
}

// NBD_CMD_RESIZE, where a client may: sizes of every kind, more of them than anybody waits for, and the image
// still serves.
TEST_F(HostileRequestTest, ResizesThatMakeNoSense) {
  auto server = TestServer::Start({.size = kMiB, .reactors = 1});
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  auto elastic = std::make_shared<nbd::Export>();
  elastic->name = "elastic";
  elastic->device = server_->exports().Find("disk")->device;
  elastic->resize = [device = elastic->device](uint64_t size) { return device->Resize(size); };
  ASSERT_TRUE(server_->exports().Add(elastic));
  ByteClient client = Connect();
  ASSERT_TRUE(client.EnterExtended("elastic"));
  for (uint64_t size : {uint64_t{0}, uint64_t{1}, uint64_t{513}, uint64_t{1} << 40, uint64_t{1} << 62,
                        uint64_t{1} << 63, kMost - 511, kMost}) {
    ASSERT_TRUE(client.Send(ExtendedRequest(8, size, 0)));
    const int error = client.ExtendedError();
    EXPECT_TRUE(error == 0 || error == 22 || error == 28) << size << ": error " << error;
    // At the end, and behind it, whatever that is now.
    const uint64_t now = elastic->device->size();
    if (now >= 512) {
      ASSERT_TRUE(client.Send(ExtendedRequest(0, now - 512, 512)));
      EXPECT_EQ(client.ExtendedError(), 0);
    }
    ASSERT_TRUE(client.Send(ExtendedRequest(0, now, 1)));
    EXPECT_NE(client.ExtendedError(), 0);
  }
  ByteClient deaf = Connect();
  ASSERT_TRUE(deaf.Enter("elastic"));
  std::string many;
  for (uint64_t i = 0; i < 2000; ++i) many += Request(8, (i % 7 + 1) * kMiB, 0);
  deaf.SendSome(many);
  deaf.Close();
  ExpectNobodyIsLeftBut(1);
  ASSERT_TRUE(client.Send(ExtendedRequest(8, kMiB, 0)));
  EXPECT_EQ(client.ExtendedError(), 0);
  EXPECT_EQ(elastic->device->size(), kMiB);
  ExpectOthersAreServed();
}

// A good conversation with extended headers, cut at every byte.
TEST_F(HostileRequestTest, DisconnectAtEveryByteWithExtendedHeaders) {
  Start();
  const std::string conversation =
      U32(3) + Opt(kOptExtended) + Opt(kOptSetMeta, MetaQueries("disk", 1, "base:allocation")) + Go("disk") +
      ExtendedRequest(0, 0, 512) + ExtendedRequest(1, 0, 16, kPayloadLength) + std::string(16, 'w') +
      ExtendedRequest(7, 0, 12, kPayloadLength) + U64(4096) + U32(1) +
      ExtendedRequest(0, 0, 16, kPayloadLength) + std::string(16, 'r') + ExtendedRequest(2, 0, 0);
  for (size_t size = 0; size <= conversation.size(); ++size) {
    ByteClient client = Connect();
    ASSERT_TRUE(client.Send(conversation.substr(0, size)));
    client.Close();
  }
  ExpectOthersAreServed();
  ExpectNobodyIsLeft();
}

}  // namespace
}  // namespace berth::testing
