// Arbitrary bytes as a client's stream in the transmission phase, against a device in memory.
//
// The first byte chooses: bit 0 structured replies, bit 1 tight bounds, bit 2 a read-only export, bit 3 magic
// numbers put where requests begin, so that random bytes get past them. The rest is the stream. It must
// neither crash nor hang the session; with structured replies, which tell their own length, what comes back
// must be whole messages.
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <utility>
#include <vector>

#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "nbd/session.h"
#include "nbd/wire.h"

namespace berth::nbd {
namespace {

constexpr uint64_t kDeviceSize = uint64_t{4} << 20;

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

ReactorPool& Reactors() {
  static ReactorPool* const pool = [] {
    auto created = ReactorPool::Create(1);
    Require(created.ok(), "no io_uring");
    return std::move(created)->release();
  }();
  return *pool;
}

void PutMagicNumbers(std::vector<uint8_t>& stream) {
  for (size_t at = 0; at + kRequestSize <= stream.size();) {
    Store32(&stream[at], kRequestMagic);
    const bool write = Load16(&stream[at + 6]) == static_cast<uint16_t>(Command::kWrite);
    at += kRequestSize + (write ? Load32(&stream[at + 24]) : 0);
  }
}

// Sends `stream`, then its end, and returns what comes back until the server's end.
std::vector<uint8_t> Exchange(int socket, absl::Span<const uint8_t> stream) {
  std::vector<uint8_t> replies;
  std::vector<uint8_t> buffer(1 << 20);
  bool sending = true;
  while (true) {
    pollfd ready = {socket, static_cast<short>(POLLIN | (sending ? POLLOUT : 0)), 0};
    const int found = poll(&ready, 1, 60'000);
    if (found < 0 && errno == EINTR) continue;  // libFuzzer's own alarm.
    Require(found == 1, "the session neither reads nor answers");
    if (sending && (ready.revents & POLLOUT) != 0) {
      const ssize_t sent = send(socket, stream.data(), stream.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) stream.remove_prefix(static_cast<size_t>(sent));
      if (stream.empty()) {
        sending = false;
        shutdown(socket, SHUT_WR);
      }
    }
    const ssize_t count = recv(socket, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (count > 0) {
      replies.insert(replies.end(), buffer.begin(), buffer.begin() + count);
    } else if (count == 0 || errno == ECONNRESET) {
      return replies;
    }
  }
}

void CheckMessages(absl::Span<const uint8_t> replies) {
  while (!replies.empty()) {
    size_t size = kSimpleReplySize;
    Require(replies.size() >= size, "a reply is cut");
    if (Load32(replies.data()) == kStructuredReplyMagic) {
      ChunkHeader header;
      Require(
          replies.size() >= kChunkHeaderSize && DecodeChunkHeader(ReplyStyle::kStructured, replies, &header),
          "a chunk is cut");
      size = kChunkHeaderSize + header.length;
    } else {
      Require(Load32(replies.data()) == kSimpleReplyMagic, "a reply without its magic number");
    }
    Require(replies.size() >= size, "a payload is cut");
    replies.remove_prefix(size);
  }
}

void Run(uint8_t choice, std::vector<uint8_t> stream) {
  auto device = MemoryDevice::Create(kDeviceSize);
  Require(device.ok(), "no device");
  auto served = std::make_shared<Export>();
  served->device = *std::move(device);
  served->read_only = (choice & 4) != 0;
  Negotiated negotiated;
  negotiated.served = served;
  const bool structured = (choice & 1) != 0;
  if (structured) {
    negotiated.reply_style = ReplyStyle::kStructured;
    negotiated.contexts = {{1, kBaseAllocation}};
  }
  SessionOptions options;
  if ((choice & 2) != 0) options.max_bytes_in_flight = options.max_requests_in_flight = 1;
  if ((choice & 8) != 0) PutMagicNumbers(stream);

  int ends[2];
  Require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "no socketpair");
  UniqueFd client(ends[0]), server(ends[1]);
  std::promise<void> ended;
  Reactor& reactor = Reactors().at(0);
  const std::shared_ptr<Session> session =
      StartSession(reactor, MakePlainTransport(reactor, std::move(server)), std::move(negotiated), options,
                   [&ended] { ended.set_value(); });
  const std::vector<uint8_t> replies = Exchange(client.get(), stream);
  Require(ended.get_future().wait_for(std::chrono::seconds(60)) == std::future_status::ready, "no end");
  if (structured) CheckMessages(replies);
}

}  // namespace
}  // namespace berth::nbd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0) berth::nbd::Run(data[0], std::vector<uint8_t>(data + 1, data + size));
  return 0;
}
