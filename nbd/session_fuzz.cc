// Arbitrary bytes as a client's stream in the transmission phase, against a device in memory.
//
// The first byte chooses: bit 0 structured replies, bit 1 tight bounds, bit 2 a read-only export, bit 3 magic
// numbers put where requests begin, so that random bytes get past them, bit 4 extended headers, bit 5 blocks
// of 4 KiB, bit 6 an export that clients may resize. The rest is the stream. It must neither crash nor hang
// the session; with chunks, which tell their own length, what comes back must be whole messages.
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <future>
#include <memory>
#include <utility>
#include <vector>

#include "image/memory/memory_device.h"
#include "nbd/request_check.h"
#include "nbd/session.h"
#include "nbd/wire.h"
#include "tests/fakes/status_device.h"
#include "tests/fuzz/fuzz_reactor.h"
#include "tests/fuzz/require.h"

namespace berth::nbd {
namespace {

constexpr uint64_t kDeviceSize = uint64_t{4} << 20;

void PutMagicNumbers(ReplyStyle style, std::vector<uint8_t>& stream) {
  const bool extended = style == ReplyStyle::kExtended;
  const size_t size = RequestSize(style);
  for (size_t at = 0; stream.size() - at >= size;) {
    Store32(&stream[at], extended ? kExtendedRequestMagic : kRequestMagic);
    Request request;
    const absl::Span<const uint8_t> header(&stream[at], size);
    Require(extended ? DecodeExtendedRequest(header, &request) : DecodeRequest(header, &request), "magic");
    const uint64_t payload = PayloadLength(request, style);
    if (payload > stream.size() - at - size) return;
    at += size + static_cast<size_t>(payload);
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

void CheckMessages(ReplyStyle style, absl::Span<const uint8_t> replies) {
  while (!replies.empty()) {
    size_t size = kSimpleReplySize;
    Require(replies.size() >= size, "a reply is cut");
    if (style == ReplyStyle::kExtended || Load32(replies.data()) == kStructuredReplyMagic) {
      ChunkHeader header;
      Require(replies.size() >= ChunkHeaderSize(style) && DecodeChunkHeader(style, replies, &header),
              "a chunk is cut, or has another magic number");
      Require(header.length <= kMaxPayload + 8, "a chunk is larger than a payload");
      size = ChunkHeaderSize(style) + static_cast<size_t>(header.length);
    } else {
      Require(Load32(replies.data()) == kSimpleReplyMagic, "a reply without its magic number");
    }
    Require(replies.size() >= size, "a payload is cut");
    replies.remove_prefix(size);
  }
}

ReplyStyle StyleOf(uint8_t choice) {
  if ((choice & 16) != 0) return ReplyStyle::kExtended;
  return (choice & 1) != 0 ? ReplyStyle::kStructured : ReplyStyle::kSimple;
}

Negotiated MakeNegotiated(uint8_t choice) {
  auto memory = MemoryDevice::Create(kDeviceSize);
  Require(memory.ok(), "no device");
  auto device = std::make_shared<StatusDevice>(*std::move(memory));
  device->Offer("x-test:one", false, 1);
  auto served = std::make_shared<Export>();
  served->device = device;
  served->read_only = (choice & 4) != 0;
  if ((choice & 64) != 0) {
    served->resize = [device = device.get()](uint64_t size) {
      // What the fuzzer writes to has to fit into memory.
      if (size > 2 * kDeviceSize) return absl::OutOfRangeError("too large");
      return device->Resize(size);
    };
  }
  Negotiated negotiated;
  negotiated.reply_style = StyleOf(choice);
  if ((choice & 32) != 0) negotiated.block_sizes.minimum = 4096;
  if (negotiated.reply_style != ReplyStyle::kSimple) {
    negotiated.contexts = {{1, kBaseAllocation}, {2, "x-test:one", device->contexts()[0]}};
  }
  negotiated.served = std::move(served);
  return negotiated;
}

void Run(uint8_t choice, std::vector<uint8_t> stream) {
  Negotiated negotiated = MakeNegotiated(choice);
  const ReplyStyle style = negotiated.reply_style;
  SessionOptions options;
  if ((choice & 2) != 0) options.max_bytes_in_flight = options.max_requests_in_flight = 1;
  if ((choice & 8) != 0) PutMagicNumbers(style, stream);

  int ends[2];
  Require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "no socketpair");
  UniqueFd client(ends[0]), server(ends[1]);
  std::promise<void> ended;
  Reactor& reactor = FuzzReactor();
  const std::shared_ptr<Session> session =
      StartSession(reactor, MakePlainTransport(reactor, std::move(server)), std::move(negotiated), options,
                   [&ended] { ended.set_value(); });
  const std::vector<uint8_t> replies = Exchange(client.get(), stream);
  Require(ended.get_future().wait_for(std::chrono::seconds(60)) == std::future_status::ready, "no end");
  if (style != ReplyStyle::kSimple) CheckMessages(style, replies);
}

}  // namespace
}  // namespace berth::nbd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0) berth::nbd::Run(data[0], std::vector<uint8_t>(data + 1, data + size));
  return 0;
}
