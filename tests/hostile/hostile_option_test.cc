// Clients that haggle without end, in no order, or for nothing.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/hostile/hostile_fixture.h"

namespace berth::testing {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

using HostileOptionTest = HostileTest;

// In the negotiated style of replies: whether a read is answered, and a request that makes no sense after it.
bool IsServed(ByteClient& client, bool structured, bool extended) {
  if (extended) {
    return client.Send(ExtendedRequest(0, 0, 512)) && client.ExtendedError() == 0 &&
           client.Send(ExtendedRequest(99, 0, 512)) && client.ExtendedError() == 22;
  }
  if (!client.Send(Request(0, 0, 512))) return false;
  if (!structured)
    return client.Receive(16 + 512) == U32(0x67446698) + U32(0) + U64(1) + std::string(512, '\0');
  // One chunk, of data or of a hole.
  const std::string header = client.Receive(20);
  return header.substr(0, 6) == U32(0x668e33ef) + U16(1) &&
         client.Receive(Number(header.substr(16))).size() >= 12;
}

// Every order of every option: each has its final reply, and what was agreed on is what is spoken.
TEST_F(HostileOptionTest, OptionsInEveryOrder) {
  Start();
  std::mt19937 random(7);
  const std::vector<std::pair<uint32_t, std::string>> options = {
      {kOptList, ""},
      {kOptList, "data"},
      {kOptStartTls, ""},
      {kOptStructured, ""},
      {kOptStructured, "data"},
      {kOptExtended, ""},
      {kOptExtended, "data"},
      {kOptInfo, Go("disk").substr(16)},
      {kOptInfo, Go("none").substr(16)},
      {kOptGo, Go("none").substr(16)},
      {kOptGo, "x"},
      {kOptListMeta, MetaQueries("disk", 0, "")},
      {kOptListMeta, MetaQueries("none", 3, "base:")},
      {kOptSetMeta, MetaQueries("disk", 3, "base:allocation")},
      {kOptSetMeta, MetaQueries("disk", 1, "nothing")},
      {4, ""},
      {12, std::string(5000, 'x')},
      {0xffffffff, ""},
  };
  for (int round = 0; round < 200; ++round) {
    ByteClient client = Connect();
    ASSERT_TRUE(client.Greet());
    bool structured = false, extended = false;
    const size_t count = random() % 40;
    std::string conversation;
    for (size_t i = 0; i < count; ++i) {
      const auto& [option, data] = options[random() % options.size()];
      absl::StrAppend(&conversation, " ", option);
      const OptionReply reply = client.Ask(option, data);
      ASSERT_EQ(reply.option, option) << conversation;
      ASSERT_NE(reply.type, 0u) << conversation;
      if (reply.type != 1) continue;
      structured |= option == kOptStructured;
      extended |= option == kOptExtended;
    }
    const OptionReply last = client.Ask(kOptGo, Go("disk").substr(16));
    ASSERT_EQ(last.type, 1u) << conversation;
    EXPECT_TRUE(IsServed(client, structured, extended)) << conversation;
  }
  ExpectNobodyIsLeft();
}

// NBD_OPT_ABORT: with data, without waiting, half of it, and more after it.
TEST_F(HostileOptionTest, GoodByesOfEveryKind) {
  Start();
  for (const std::string& bye : {Opt(kOptAbort), Opt(kOptAbort, "so long"), Opt(kOptAbort) + Opt(kOptList),
                                 Opt(kOptAbort).substr(0, 9), Opt(kOptList) + Opt(kOptAbort),
                                 Opt(kOptAbort, std::string(100'000, 'x'))}) {
    ByteClient hasty = Connect();
    ASSERT_TRUE(hasty.Greet());
    hasty.Send(bye);
    hasty.Close();
    ByteClient patient = Connect();
    ASSERT_TRUE(patient.Greet());
    ASSERT_TRUE(patient.Send(bye));
    if (bye.size() < 16) continue;
    OptionReply reply;
    do {
      reply = patient.ReceiveOptionReply();
    } while (reply.type != 0 && reply.option != kOptAbort);
    EXPECT_EQ(reply.type, 1u);
    EXPECT_TRUE(patient.HangsUp());
  }
  ExpectNobodyIsLeft();
  ExpectOthersAreServed();
}

// Each phase has its magic numbers, and the other's are a breach.
TEST_F(HostileOptionTest, PhasesAreNotMixed) {
  Start();
  for (const std::string& request : {Request(0, 0, 512), ExtendedRequest(0, 0, 512)}) {
    ByteClient early = Connect();
    ASSERT_TRUE(early.Greet());
    ASSERT_TRUE(early.Send(request));
    EXPECT_TRUE(early.HangsUp());
    ByteClient late = Connect();
    ASSERT_TRUE(request.size() == 28 ? late.Enter() : late.EnterExtended());
    ASSERT_TRUE(late.Send(Opt(kOptList, std::string(40, '\0'))));
    EXPECT_TRUE(late.HangsUp());
  }
  ExpectOthersAreServed();
}

// Five thousand queries in an option, and twenty such options from each of ten clients.
TEST_F(HostileOptionTest, ContextsByTheThousand) {
  Start();
  std::vector<ByteClient> clients;
  for (int i = 0; i < 10; ++i) {
    clients.push_back(Connect());
    ASSERT_TRUE(clients.back().Greet());
    ASSERT_EQ(clients.back().Ask(kOptStructured).type, 1u);
  }
  const std::string unknown = MetaQueries("disk", 5000, "x-a:b");
  const std::string known = MetaQueries("disk", 3000, "base:allocation");
  for (int round = 0; round < 10; ++round) {
    for (ByteClient& client : clients) {
      for (const std::string& data : {unknown, known}) {
        const OptionReply reply = client.Ask(round % 2 == 0 ? kOptSetMeta : kOptListMeta, data);
        // Served, or too big: the server's choice, but an answer.
        ASSERT_TRUE(reply.type == 1 || reply.type == 0x80000009) << reply.type;
      }
    }
  }
  ExpectGrowthBelow(16 * kMiB);
  // One context, however often it was asked for: a block status has one chunk, and it is the last.
  ASSERT_EQ(clients[0].Ask(kOptSetMeta, known).type, 1u);
  ASSERT_EQ(clients[0].Ask(kOptGo, Go("disk").substr(16)).type, 1u);
  ASSERT_TRUE(clients[0].Send(Request(7, 0, 4096)));
  EXPECT_EQ(clients[0].Receive(8), U32(0x668e33ef) + U16(1) + U16(5));
  ExpectOthersAreServed();
}

// Half an option of the largest size from each of two hundred clients, and lists that nobody reads.
TEST_F(HostileOptionTest, SilentClientsCostLittle) {
  Start();
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(server_
                    ->AddExport(absl::StrCat(i, std::string(2000, 'n')), std::make_shared<NullDevice>(4096),
                                std::string(2000, 'd'))
                    .ok());
  }
  std::vector<ByteClient> silent;
  for (int i = 0; i < 200; ++i) {
    silent.push_back(Connect());
    ASSERT_TRUE(silent.back().Greet());
    if (i % 2 == 0) {
      ASSERT_TRUE(silent.back().Send(Opt(kOptList)));
    } else {
      ASSERT_TRUE(silent.back().Send(Opt(kOptInfo, std::string(65'000, 'x')).substr(0, 60'000)));
    }
    if (i % 50 == 0) ExpectOthersAreServed();
  }
  // 64 KiB each, and as much again for the exports and for what an allocator leaves.
  ExpectGrowthBelow(2 * 200 * 64 * 1024);
  ExpectOthersAreServed();
}

}  // namespace
}  // namespace berth::testing
