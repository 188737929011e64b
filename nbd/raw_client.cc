#include "nbd/raw_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

constexpr int kDeadlineSeconds = 60;

}  // namespace

RawClient::RawClient(UniqueFd socket) : socket_(std::move(socket)) {
  const timeval deadline = {kDeadlineSeconds, 0};
  EXPECT_EQ(setsockopt(fd(), SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof(deadline)), 0);
  EXPECT_EQ(setsockopt(fd(), SOL_SOCKET, SO_SNDTIMEO, &deadline, sizeof(deadline)), 0);
}

void RawClient::MakePair(UniqueFd* client, UniqueFd* server, int buffer_bytes) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  client->Reset(ends[0]);
  server->Reset(ends[1]);
  for (const int end : ends) {
    // Root may go past net.core.wmem_max; where it may not, the tests run with less.
    if (setsockopt(end, SOL_SOCKET, SO_SNDBUFFORCE, &buffer_bytes, sizeof(buffer_bytes)) != 0) {
      setsockopt(end, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
    }
  }
}

bool RawClient::Send(absl::Span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

bool RawClient::Send(const Request& request, absl::Span<const uint8_t> payload) {
  std::vector<uint8_t> message(RequestSize(style_));
  if (style_ == ReplyStyle::kExtended) {
    EncodeExtendedRequest(request, absl::MakeSpan(message));
  } else {
    EncodeRequest(request, absl::MakeSpan(message));
  }
  message.insert(message.end(), payload.begin(), payload.end());
  return Send(message);
}

size_t RawClient::SendWithoutWaiting(absl::Span<const uint8_t> bytes) {
  const ssize_t sent = send(fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  return sent < 0 ? 0 : static_cast<size_t>(sent);
}

std::vector<uint8_t> RawClient::Receive(size_t size) {
  std::vector<uint8_t> bytes(size);
  size_t filled = 0;
  while (filled < size) {
    const ssize_t count = recv(fd(), bytes.data() + filled, size - filled, 0);
    if (count < 0 && errno == EINTR) continue;
    EXPECT_GT(count, 0) << "after " << filled << " of " << size
                        << " bytes: " << (count < 0 ? strerror(errno) : "end of stream");
    if (count <= 0) break;
    filled += static_cast<size_t>(count);
  }
  if (filled < size) std::fill(bytes.begin() + static_cast<ptrdiff_t>(filled), bytes.end(), 0xee);
  return bytes;
}

bool RawClient::AtEnd() {
  uint8_t byte;
  ssize_t count;
  do count = recv(fd(), &byte, 1, 0);
  while (count < 0 && errno == EINTR);
  // A socket that is closed with unread bytes resets the connection.
  return count == 0 || (count < 0 && errno == ECONNRESET);
}

bool RawClient::Quiet() {
  pollfd poll_fd = {fd(), POLLIN, 0};
  return poll(&poll_fd, 1, 0) == 0;
}

SimpleReply RawClient::ReceiveSimple() {
  const std::vector<uint8_t> bytes = Receive(kSimpleReplySize);
  SimpleReply reply;
  EXPECT_TRUE(DecodeSimpleReply(bytes, &reply)) << "no simple reply";
  return reply;
}

RawClient::Chunk RawClient::ReceiveChunk() {
  Chunk chunk;
  EXPECT_TRUE(DecodeChunkHeader(style_, Receive(ChunkHeaderSize(style_)), &chunk.header)) << "no chunk";
  EXPECT_LE(chunk.header.length, kMaxPayload + 4096);
  if (chunk.header.length <= kMaxPayload + 4096) {
    chunk.payload = Receive(static_cast<size_t>(chunk.header.length));
  }
  return chunk;
}

std::string RawClient::Chunk::message() const {
  EXPECT_GE(payload.size(), 6u);
  if (payload.size() < 6) return "";
  const size_t length = Load16(&payload[4]);
  EXPECT_GE(payload.size(), 6 + length);
  return std::string(payload.begin() + 6, payload.begin() + 6 + static_cast<ptrdiff_t>(length));
}

std::vector<uint8_t> Pattern(size_t size, uint8_t seed) {
  std::vector<uint8_t> bytes(size);
  uint32_t state = seed * 2654435761u + 1;
  for (uint8_t& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<uint8_t>(state >> 24);
  }
  return bytes;
}

}  // namespace berth::nbd
