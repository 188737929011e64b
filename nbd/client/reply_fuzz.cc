// A hostile server's bytes in the transmission phase, against a RemoteConnection with a request of every kind
// under way. Every operation must end, and no byte outside of its buffer may change.
//
// The first byte chooses: its two lowest bits the style (simple, structured, extended), bit 2 magic numbers,
// cookies and offsets put where replies begin, so that random bytes get past them. The rest is what the
// server sends, and then the end of the stream.
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "nbd/client/remote_connection.h"
#include "tests/fuzz/fuzz_reactor.h"
#include "tests/fuzz/require.h"

namespace berth::nbd {
namespace {

constexpr size_t kMaxInput = 100'000;  // What the socket takes without being read.
constexpr uint64_t kSize = uint64_t{1} << 30;

// The requests in the order of their cookies, which begin with 1.
constexpr uint64_t kReadOffset = 4096, kReadSize = 100, kLargeOffset = 1 << 20, kLargeSize = 200'000;
constexpr uint64_t kOffsets[] = {kReadOffset, kLargeOffset, 0, 512, 512, 0, 0, 0};

void Mend(std::vector<uint8_t>& stream, ReplyStyle style) {
  const size_t head = style == ReplyStyle::kSimple ? kSimpleReplySize : ChunkHeaderSize(style);
  for (size_t at = 0; at + head <= stream.size();) {
    const uint64_t cookie = 1 + stream[at + 15] % std::size(kOffsets);
    size_t payload = 0;
    if (style == ReplyStyle::kSimple) {
      Store32(&stream[at], kSimpleReplyMagic);
      Store64(&stream[at + 8], cookie);
      if (Load32(&stream[at + 4]) == 0 && cookie <= 2) payload = cookie == 1 ? kReadSize : kLargeSize;
    } else {
      Store64(&stream[at + 8], cookie);
      stream[at + 6] &= 0x80;
      if (style == ReplyStyle::kExtended) {
        Store32(&stream[at], kExtendedReplyMagic);
        Store64(&stream[at + 16], kOffsets[cookie - 1]);
        payload = Load64(&stream[at + 24]) & 0x3ff;
        Store64(&stream[at + 24], payload);
      } else {
        Store32(&stream[at], kStructuredReplyMagic);
        payload = Load32(&stream[at + 16]) & 0x3ff;
        Store32(&stream[at + 16], static_cast<uint32_t>(payload));
      }
      // Content that lies within its read, more often than not.
      const bool content = stream[at + 6] == 0 && (stream[at + 7] == 1 || stream[at + 7] == 2);
      if (content && cookie <= 2 && at + head + 8 <= stream.size() && (stream[at + head] & 1) == 0) {
        const uint64_t size = cookie == 1 ? kReadSize : kLargeSize;
        Store64(&stream[at + head], kOffsets[cookie - 1] + Load32(&stream[at + head + 4]) % size);
      }
    }
    at += head + payload;
  }
}

Task<void> Await(Task<IoResult> operation, Gate::Holder) {
  const IoResult result = co_await operation;
  Require(result.error >= 0, "no errno");
}

Task<void> Exchange(UniqueFd socket, ReplyStyle style) {
  Reactor& reactor = FuzzReactor();
  Connection connection;
  connection.transport = MakePlainTransport(reactor, std::move(socket));
  connection.agreement.style = style;
  connection.agreement.info.size = kSize;
  connection.agreement.info.flags = 0x1ded;
  if (style != ReplyStyle::kSimple) connection.agreement.info.contexts = {{1, kBaseAllocation}, {2, "x-y:z"}};
  RemoteConnection remote(reactor, std::move(connection), {});
  // Each in a block of its own, so that a sanitizer sees the first byte past it.
  std::vector<uint8_t> small(kReadSize), large(kLargeSize);
  const std::vector<uint8_t> data(512);
  const uint32_t first_context = 1;
  std::vector<ContextStatus> all, one;
  std::vector<Extent> extents;
  Gate gate(reactor);
  // Before the first byte is received, as no turn has ended yet.
  Spawn(Await(remote.Read(kReadOffset, absl::MakeSpan(small)), gate.Enter()));
  Spawn(Await(remote.Read(kLargeOffset, absl::MakeSpan(large)), gate.Enter()));
  Spawn(Await(remote.Write(0, data, WriteFlags::kNone), gate.Enter()));
  Spawn(Await(remote.BlockStatus(512, 1 << 20, false, {}, &all), gate.Enter()));
  Spawn(Await(remote.BlockStatus(512, 1 << 20, true, {&first_context, 1}, &one), gate.Enter()));
  Spawn(Await(remote.Zero(0, kSize, ZeroFlags::kNone), gate.Enter()));
  Spawn(Await(remote.Flush(), gate.Enter()));
  Spawn(Await(remote.Extents(0, 4096, &extents), gate.Enter()));
  co_await gate.Close();
  uint64_t covered = 0;
  for (const Extent& extent : extents) covered += extent.length;
  Require(covered <= 4096, "extents go past the range");
  for (const ContextStatus& status : all) {
    Require(!status.extents.empty() && status.extents.size() <= kMaxExtents, "a context without extents");
  }
  co_await remote.Disconnect();
}

void Run(uint8_t choice, std::vector<uint8_t> stream) {
  stream.resize(std::min(stream.size(), kMaxInput));
  const auto style = static_cast<ReplyStyle>((choice & 3) % 3);
  if ((choice & 4) != 0) Mend(stream, style);
  int ends[2];
  Require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "no socketpair");
  UniqueFd own(ends[0]);
  const UniqueFd peer(ends[1]);
  const auto size = static_cast<ssize_t>(stream.size());
  Require(send(peer.get(), stream.data(), stream.size(), MSG_DONTWAIT) == size, "the socket is too small");
  shutdown(peer.get(), SHUT_WR);
  RunOn(FuzzReactor(), [&] { return Exchange(std::move(own), style); });
}

}  // namespace
}  // namespace berth::nbd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0) berth::nbd::Run(data[0], std::vector<uint8_t>(data + 1, data + size));
  return 0;
}
