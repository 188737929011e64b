#include "netlink/genl_socket.h"

#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <netlink/attr.h>
#include <netlink/genl/genl.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "netlink/dead_link_watch.h"

namespace berth::netlink {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int kFamily = 31;
constexpr uint32_t kSequence = 7;

using Attributes = std::array<nlattr*, NBD_ATTR_MAX + 1>;

Attributes Parse(nl_msg* message, uint8_t command) {
  EXPECT_EQ(nlmsg_hdr(message)->nlmsg_type, kFamily);
  EXPECT_EQ(genlmsg_hdr(nlmsg_hdr(message))->cmd, command);
  Attributes attributes = {};
  EXPECT_EQ(genlmsg_parse(nlmsg_hdr(message), 0, attributes.data(), NBD_ATTR_MAX, nullptr), 0);
  return attributes;
}

std::vector<uint32_t> Sockets(nlattr* list) {
  std::vector<uint32_t> sockets;
  int left = 0;
  nlattr* item = nullptr;
  nla_for_each_nested(item, list, left) {
    EXPECT_EQ(nla_type(item), NBD_SOCK_ITEM);
    nlattr* const fd = nla_find(static_cast<nlattr*>(nla_data(item)), nla_len(item), NBD_SOCK_FD);
    if (fd != nullptr) sockets.push_back(nla_get_u32(fd));
  }
  return sockets;
}

TEST(NbdMessageTest, Connect) {
  ConnectRequest request;
  request.size_bytes = 1 << 20;
  request.block_size = 4096;
  request.server_flags = 0x105;
  request.client_flags = 1;
  request.timeout = absl::Seconds(30);
  request.dead_connection_timeout = absl::Minutes(2);
  request.sockets = {11, 12};
  NlMessage message = ConnectMessage(kFamily, request);
  ASSERT_NE(message, nullptr);
  Attributes attributes = Parse(message.get(), NBD_CMD_CONNECT);
  EXPECT_EQ(attributes[NBD_ATTR_INDEX], nullptr) << "the kernel chooses only where there is none";
  EXPECT_EQ(attributes[NBD_ATTR_BACKEND_IDENTIFIER], nullptr);
  EXPECT_EQ(nla_get_u64(attributes[NBD_ATTR_SIZE_BYTES]), 1u << 20);
  EXPECT_EQ(nla_get_u64(attributes[NBD_ATTR_BLOCK_SIZE_BYTES]), 4096u);
  EXPECT_EQ(nla_get_u64(attributes[NBD_ATTR_SERVER_FLAGS]), 0x105u);
  EXPECT_EQ(nla_get_u64(attributes[NBD_ATTR_CLIENT_FLAGS]), 1u);
  EXPECT_EQ(nla_get_u64(attributes[NBD_ATTR_TIMEOUT]), 30u);
  EXPECT_EQ(nla_get_u64(attributes[NBD_ATTR_DEAD_CONN_TIMEOUT]), 120u);
  EXPECT_THAT(Sockets(attributes[NBD_ATTR_SOCKETS]), ElementsAre(11, 12));

  request.index = 5;
  request.backend_identifier = "berth:x";
  message = ConnectMessage(kFamily, request);
  attributes = Parse(message.get(), NBD_CMD_CONNECT);
  EXPECT_EQ(nla_get_u32(attributes[NBD_ATTR_INDEX]), 5u);
  EXPECT_STREQ(nla_get_string(attributes[NBD_ATTR_BACKEND_IDENTIFIER]), "berth:x");
}

TEST(NbdMessageTest, TheLargestConnectFits) {
  ConnectRequest request;
  request.index = 1;
  request.backend_identifier = std::string(1024, 'x');
  request.sockets.assign(256, 1);
  const NlMessage message = ConnectMessage(kFamily, request);
  ASSERT_NE(message, nullptr);
  EXPECT_EQ(Sockets(Parse(message.get(), NBD_CMD_CONNECT)[NBD_ATTR_SOCKETS]).size(), 256u);
  request.sockets.assign(10000, 1);
  EXPECT_EQ(ConnectMessage(kFamily, request), nullptr);
}

TEST(NbdMessageTest, DisconnectAndReconfigureSayOnlyWhatIsSet) {
  NlMessage message = DisconnectMessage(kFamily, 9);
  EXPECT_EQ(nla_get_u32(Parse(message.get(), NBD_CMD_DISCONNECT)[NBD_ATTR_INDEX]), 9u);

  ReconfigureRequest request;
  request.index = 9;
  request.size_bytes = 4096;
  message = ReconfigureMessage(kFamily, request);
  const Attributes attributes = Parse(message.get(), NBD_CMD_RECONFIGURE);
  EXPECT_EQ(nla_get_u64(attributes[NBD_ATTR_SIZE_BYTES]), 4096u);
  for (const int absent : {NBD_ATTR_SOCKETS, NBD_ATTR_TIMEOUT, NBD_ATTR_DEAD_CONN_TIMEOUT,
                           NBD_ATTR_CLIENT_FLAGS, NBD_ATTR_BLOCK_SIZE_BYTES, NBD_ATTR_BACKEND_IDENTIFIER}) {
    EXPECT_EQ(attributes[absent], nullptr) << absent;
  }
}

// What the kernel sends: an answer to a connect, and an acknowledgement.
std::vector<char> Answer(uint32_t sequence, uint32_t index) {
  NlMessage message(nlmsg_alloc());
  genlmsg_put(message.get(), 0, sequence, kFamily, 0, 0, NBD_CMD_CONNECT, 1);
  nla_put_u32(message.get(), NBD_ATTR_INDEX, index);
  const auto* const begin = reinterpret_cast<const char*>(nlmsg_hdr(message.get()));
  return std::vector<char>(begin, begin + nlmsg_hdr(message.get())->nlmsg_len);
}

std::vector<char> Acknowledgement(uint32_t sequence, int error, const char* text, bool capped) {
  NlMessage message(nlmsg_alloc());
  int flags = capped ? NLM_F_CAPPED : 0;
  if (text != nullptr) flags |= NLM_F_ACK_TLVS;
  nlmsg_put(message.get(), 0, sequence, NLMSG_ERROR, 0, flags);
  nlmsgerr body = {};
  body.error = -error;
  body.msg.nlmsg_len = sizeof(nlmsghdr) + 20;
  nlmsg_append(message.get(), &body, sizeof(body), NLMSG_ALIGNTO);
  const std::array<char, 20> request = {};
  if (!capped) nlmsg_append(message.get(), const_cast<char*>(request.data()), request.size(), NLMSG_ALIGNTO);
  if (text != nullptr) nla_put_string(message.get(), NLMSGERR_ATTR_MSG, text);
  const auto* const begin = reinterpret_cast<const char*>(nlmsg_hdr(message.get()));
  return std::vector<char>(begin, begin + nlmsg_hdr(message.get())->nlmsg_len);
}

bool Read(const std::vector<char>& bytes, KernelAnswer& answer) {
  return ReadAnswer(reinterpret_cast<const nlmsghdr*>(bytes.data()), static_cast<int>(bytes.size()),
                    kSequence, answer);
}

TEST(KernelAnswerTest, IndexThenAcknowledgement) {
  KernelAnswer answer;
  EXPECT_FALSE(Read(Answer(kSequence, 5), answer));
  EXPECT_EQ(answer.index, 5u);
  EXPECT_TRUE(Read(Acknowledgement(kSequence, 0, nullptr, true), answer));
  EXPECT_EQ(answer.error, 0);
}

TEST(KernelAnswerTest, BothInOneDatagram) {
  std::vector<char> both = Answer(kSequence, 5);
  const std::vector<char> acknowledgement = Acknowledgement(kSequence, EBUSY, nullptr, true);
  both.insert(both.end(), acknowledgement.begin(), acknowledgement.end());
  KernelAnswer answer;
  EXPECT_TRUE(Read(both, answer));
  EXPECT_EQ(answer.index, 5u);
  EXPECT_EQ(answer.error, EBUSY);
}

TEST(KernelAnswerTest, TheKernelsWords) {
  for (const bool capped : {true, false}) {
    KernelAnswer answer;
    EXPECT_TRUE(Read(Acknowledgement(kSequence, EINVAL, "attribute is malformed", capped), answer));
    EXPECT_EQ(answer.error, EINVAL);
    EXPECT_EQ(answer.explanation, "attribute is malformed") << capped;
  }
}

TEST(KernelAnswerTest, AnswersToOthersAreNotOurs) {
  KernelAnswer answer;
  EXPECT_FALSE(Read(Answer(kSequence + 1, 5), answer));
  EXPECT_FALSE(Read(Acknowledgement(kSequence - 1, EIO, nullptr, true), answer));
  EXPECT_FALSE(answer.index.has_value());
  EXPECT_EQ(answer.error, 0);
}

TEST(KernelAnswerTest, CutOffAnywhere) {
  // Each prefix in memory of its own size, so that a read past its end is seen.
  std::vector<char> whole = Answer(kSequence, 5);
  const std::vector<char> acknowledgement = Acknowledgement(kSequence, EINVAL, "malformed", false);
  for (const std::vector<char>& bytes : {whole, acknowledgement}) {
    for (size_t length = 0; length < bytes.size(); ++length) {
      const std::vector<char> prefix(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
      KernelAnswer answer;
      EXPECT_FALSE(Read(prefix, answer)) << length;
      EXPECT_FALSE(answer.index.has_value());
    }
  }
}

TEST(DeadLinksTest, OnlyDeadLinksOfTheFamily) {
  const auto message = [](int family, uint8_t command, bool index) {
    NlMessage made(nlmsg_alloc());
    genlmsg_put(made.get(), 0, 0, family, 0, 0, command, 1);
    if (index) nla_put_u32(made.get(), NBD_ATTR_INDEX, 12);
    return made;
  };
  const auto read = [](const NlMessage& made) {
    return ReadDeadLinks(nlmsg_hdr(made.get()), static_cast<int>(nlmsg_hdr(made.get())->nlmsg_len), kFamily);
  };
  EXPECT_THAT(read(message(kFamily, NBD_CMD_LINK_DEAD, true)), ElementsAre(12));
  EXPECT_THAT(read(message(kFamily, NBD_CMD_LINK_DEAD, false)), IsEmpty());
  EXPECT_THAT(read(message(kFamily, NBD_CMD_STATUS, true)), IsEmpty());
  EXPECT_THAT(read(message(kFamily + 1, NBD_CMD_LINK_DEAD, true)), IsEmpty());
}

TEST(GenlSocketTest, OpensWithoutNbd) {
  absl::StatusOr<GenlSocket> socket = GenlSocket::Open();
  ASSERT_TRUE(socket.ok()) << socket.status();
  EXPECT_GE(socket->fd(), 0);
}

}  // namespace
}  // namespace berth::netlink
