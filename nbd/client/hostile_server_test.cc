// Servers that lie, stop in the middle, or say nothing: every operation gets its error, nothing is written
// where it does not belong, and status() says what was wrong.
#include <sys/socket.h>

#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "nbd/client/client_fixture.h"

namespace berth::nbd {
namespace {

class HostileServerTest : public ClientTest {
 protected:
  // A chunk of the first request, which is at `offset`.
  static std::string Chunk(ReplyStyle style, uint16_t flags, uint16_t type, absl::string_view payload,
                           uint64_t offset = 0, uint64_t cookie = 1) {
    const std::string head = U16(flags) + U16(type) + U64(cookie);
    if (style == ReplyStyle::kExtended) {
      return absl::StrCat(Hex("6e8a278c"), head, U64(offset), U64(payload.size()), payload);
    }
    return absl::StrCat(Hex("668e33ef"), head, U32(static_cast<uint32_t>(payload.size())), payload);
  }

  // A read of 16 bytes at 4,096 in a larger buffer, answered with `bytes` and the end of the stream.
  void ExpectReadFails(ReplyStyle style, absl::string_view bytes, absl::StatusCode code,
                       absl::string_view text) {
    SCOPED_TRACE(std::string(text));
    Restart(style);
    std::vector<uint8_t> memory(48, 0xaa);
    std::future<IoResult> read = Begin([&memory](RemoteConnection& client) {
      return client.Read(4096, absl::MakeSpan(memory).subspan(16, 16));
    });
    peer_->Receive(RequestSize(style));
    Send(bytes);
    peer_->Close();
    EXPECT_EQ(ErrorOf(read), EIO);
    ExpectBroken(code, text);
    for (size_t i = 0; i < memory.size(); ++i) {
      EXPECT_TRUE(memory[i] == 0xaa || (i >= 16 && i < 32)) << i;
    }
    // Later ones hear of it at once.
    std::future<IoResult> later = Begin([](RemoteConnection& client) { return client.Flush(); });
    EXPECT_EQ(ErrorOf(later), EIO);
  }
  void ExpectReadLie(ReplyStyle style, absl::string_view bytes, absl::string_view text) {
    ExpectReadFails(style, bytes, absl::StatusCode::kInternal, text);
  }
  void ExpectStatusLie(ReplyStyle style, absl::string_view bytes, absl::string_view text, bool one = false) {
    SCOPED_TRACE(std::string(text));
    Restart(style);
    std::vector<ContextStatus> status;
    std::future<IoResult> asked = BeginStatus(4096, 8192, &status, one);
    peer_->Receive(RequestSize(style));
    Send(bytes);
    peer_->Close();
    EXPECT_EQ(ErrorOf(asked), EIO);
    ExpectBroken(absl::StatusCode::kInternal, text);
    EXPECT_TRUE(status.empty());
  }
};

constexpr ReplyStyle kSimple = ReplyStyle::kSimple;
constexpr ReplyStyle kStructured = ReplyStyle::kStructured;
constexpr ReplyStyle kExtended = ReplyStyle::kExtended;

TEST_F(HostileServerTest, StreamsThatEnd) {
  const auto gone = absl::StatusCode::kUnavailable;
  ExpectReadFails(kSimple, "", gone, "the server closed the connection");
  ExpectReadFails(kSimple, Hex("6744"), gone, "in the middle of a reply");
  ExpectReadFails(kSimple, Hex("67446698 00000000 00000000000000"), gone, "in the middle of a reply");
  ExpectReadFails(kSimple, Hex("67446698 00000000 0000000000000001") + "short", gone,
                  "in the middle of a reply");
  const std::string data = Chunk(kStructured, 1, 1, U64(4096) + std::string(16, 'd'));
  for (size_t cut : {4u, 19u, 20u, 27u, 28u, 40u}) {
    ExpectReadFails(kStructured, data.substr(0, cut), gone, "in the middle of a reply");
  }
}

TEST_F(HostileServerTest, WrongMagicNumbersAndStyles) {
  const std::string simple = Hex("67446698 00000000 0000000000000001") + std::string(16, 'd');
  ExpectReadLie(kSimple, std::string(32, '\0'), "a reply begins with 0x00000000");
  ExpectReadLie(kSimple, Chunk(kStructured, 1, 1, U64(4096) + std::string(16, 'd')), "0x668e33ef");
  ExpectReadLie(kStructured, Chunk(kExtended, 1, 1, U64(4096) + std::string(16, 'd'), 4096), "0x6e8a278c");
  ExpectReadLie(kExtended, Chunk(kStructured, 1, 1, U64(4096) + std::string(16, 'd')) + std::string(32, '\0'),
                "0x668e33ef");
  ExpectReadLie(kExtended, simple + std::string(32, '\0'), "0x67446698");
  // Even an error: "MUST NOT use a simple reply for NBD_CMD_READ".
  ExpectReadLie(kStructured, simple, "in the place of a structured one");
  ExpectReadLie(kStructured, Hex("67446698 00000005 0000000000000001"), "in the place of a structured one");
}

TEST_F(HostileServerTest, WrongCookiesAndOffsets) {
  ExpectReadLie(kSimple, Hex("67446698 00000000 0000000000000002"), "the cookie 2 of no request");
  ExpectReadLie(kStructured, Chunk(kStructured, 1, 0, "", 0, 99), "the cookie 99 of no request");
  ExpectReadLie(kExtended, Chunk(kExtended, 1, 1, U64(4096) + std::string(16, 'd'), 4097),
                "repeats the offset 4097 of a request at 4096");
}

TEST_F(HostileServerTest, ChunksThatDoNotFitTheirRead) {
  for (const ReplyStyle style : {kStructured, kExtended}) {
    const auto chunk = [style](uint16_t flags, uint16_t type, absl::string_view payload) {
      return Chunk(style, flags, type, payload, 4096);
    };
    const auto data = [&chunk](uint64_t offset, size_t length, uint16_t flags = 0) {
      return chunk(flags, 1, U64(offset) + std::string(length, 'd'));
    };
    const auto hole = [&chunk](uint64_t offset, uint32_t length) {
      return chunk(0, 2, U64(offset) + U32(length));
    };
    ExpectReadLie(style, data(4096, 17), "is answered with 17 bytes at 4096");
    ExpectReadLie(style, data(4095, 2), "is answered with 2 bytes at 4095");
    ExpectReadLie(style, data(4111, 2), "is answered with 2 bytes at 4111");
    ExpectReadLie(style, data(0xffffffffffffffff, 2), "is answered with 2 bytes at 18446744073709551615");
    ExpectReadLie(style, data(4096, 0), "a chunk of type 1 has a payload of 8 bytes");
    ExpectReadLie(style, hole(4104, 9), "is answered with 9 bytes at 4104");
    ExpectReadLie(style, hole(4096, 0xffffffff), "is answered with 4294967295 bytes at 4096");
    ExpectReadLie(style, hole(4096, 0), "is answered with 0 bytes");
    ExpectReadLie(style, chunk(0, 2, U64(4096)), "a chunk of type 2 has a payload of 8 bytes");
    ExpectReadLie(style, data(4096, 8) + data(4103, 2), "2 bytes at 4103 some are answered twice");
    ExpectReadLie(style, data(4096, 8) + hole(4096, 16), "answered twice");
    ExpectReadLie(style, hole(4096, 16) + hole(4111, 1), "answered twice");
    ExpectReadLie(style, data(4096, 15, 1), "of a read of 16 bytes at 4096 only 15 are answered");
    ExpectReadLie(style, chunk(1, 0, ""), "only 0 are answered");
    ExpectReadLie(style, chunk(0, 0, ""), "a chunk of type 0 is not the last of its reply");
    ExpectReadLie(style, chunk(1, 0, "x"), "a chunk of type 0 has a payload of 1 bytes");
    ExpectReadLie(style, chunk(1, 5, U32(7) + U32(1) + U32(0)),
                  "a chunk of type 5 answers a request of type 0");
    ExpectReadLie(style, chunk(1, 6, U32(7) + U32(1) + U64(1) + U64(0)), "a chunk of type 6 answers");
    ExpectReadLie(style, chunk(1, 3, ""), "a chunk of type 3 answers");
    ExpectReadLie(style, chunk(1, 0x7fff, "what"), "a chunk of type 32767 answers");
  }
}

// Lengths of 4 GiB and of 2^64, of which nothing follows: refused by the header alone.
TEST_F(HostileServerTest, HugeLengths) {
  for (const char* type : {"0001", "0002", "0000", "8001", "8002", "8777"}) {
    ExpectReadLie(kStructured,
                  Hex(absl::StrCat("668e33ef 0001", type, "0000000000000001 ffffffff")) + U64(4096), "");
    ExpectReadLie(
        kExtended,
        Hex(absl::StrCat("6e8a278c 0001", type, "0000000000000001 0000000000001000 ffffffffffffffff")) +
            U64(4096),
        "");
  }
  ExpectStatusLie(kStructured, Hex("668e33ef 0001 0005 0000000000000001 fffffffc"), "more than 2^20 extents");
  ExpectStatusLie(kExtended, Hex("6e8a278c 0001 0006 0000000000000001 0000000000001000 fffffffffffffff8"),
                  "more than 2^20 extents");
}

TEST_F(HostileServerTest, ErrorsThatAreNone) {
  const auto error = [](uint16_t type, absl::string_view payload) {
    return Chunk(kStructured, 1, type, payload);
  };
  ExpectReadLie(kStructured, error(0x8001, U32(5)), "an error chunk of 4 bytes is malformed");
  ExpectReadLie(kStructured, error(0x8001, U32(0) + U16(0)), "malformed");
  ExpectReadLie(kStructured, error(0x8001, U32(5) + U16(3) + "no"), "malformed");
  ExpectReadLie(kStructured, error(0x8002, U32(5) + U16(0) + U32(4096)), "malformed");
  ExpectReadLie(kStructured, error(0x8002, U32(5) + U16(0) + U64(4112)), "an error at 4112 is not within");
  ExpectReadLie(kStructured, error(0x8002, U32(5) + U16(0) + U64(4095)), "an error at 4095 is not within");
  ExpectReadLie(kStructured, error(0x8001, U32(5) + U16(4097) + std::string(4097, 'e')), "malformed");
  ExpectReadLie(kStructured, error(0x8001, U32(5) + U16(0) + std::string(4200, 'e')),
                "has a payload of 4206 bytes");
  std::string endless;
  for (int i = 0; i < 1025; ++i) endless += Chunk(kStructured, 0, 0x8001, U32(5) + U16(0));
  ExpectReadLie(kStructured, endless, "more than 1024 errors");
}

TEST_F(HostileServerTest, ReadsInTooManyPieces) {
  Start(kStructured);
  std::vector<uint8_t> data(1 << 20);
  std::future<IoResult> read = BeginRead(0, &data);
  peer_->Receive(kRequestSize);
  std::string pieces;
  for (uint64_t i = 0; i < 5000; ++i) pieces += Chunk(kStructured, 0, 2, U64(2 * i) + U32(1));
  Send(pieces);
  EXPECT_EQ(ErrorOf(read), EIO);
  ExpectBroken(absl::StatusCode::kInternal, "more than 4096 scattered pieces");
}

TEST_F(HostileServerTest, LiesAboutBlockStatus) {
  const auto compact = [](absl::string_view payload, uint16_t flags = 1) {
    return Chunk(kStructured, flags, 5, payload);
  };
  const auto extended = [](absl::string_view payload) { return Chunk(kExtended, 1, 6, payload, 4096); };
  const std::string fine = U32(7) + U32(4096) + U32(0);
  ExpectStatusLie(kStructured, compact(U32(7)), "a block status of 4 bytes is malformed");
  ExpectStatusLie(kStructured, compact(fine + "x"), "malformed");
  ExpectStatusLie(kStructured, compact(U32(8) + U32(4096) + U32(0)),
                  "the context 8, which was not asked for");
  ExpectStatusLie(kStructured, compact(U32(7) + U32(0) + U32(0)), "an extent of a block status is empty");
  ExpectStatusLie(kStructured, compact(fine, 0) + compact(fine), "the context 7 is answered twice");
  ExpectStatusLie(kStructured, compact(U32(7) + U32(8192) + U32(0) + U32(1) + U32(0)),
                  "goes on behind its end");
  ExpectStatusLie(kStructured, compact(fine + U32(1) + U32(0)), "several extents, where one was asked for",
                  true);
  ExpectStatusLie(kStructured, compact(U32(7) + U32(8193) + U32(0)), "goes on behind its end", true);
  ExpectStatusLie(kStructured, Chunk(kStructured, 1, 0, ""),
                  "a block status is answered for 0 of 1 contexts");
  ExpectStatusLie(kStructured, Chunk(kStructured, 1, 1, U64(4096) + "data"), "a chunk of type 1 answers");
  ExpectStatusLie(kStructured, Hex("67446698 00000000 0000000000000001"), "in the place of a structured one");
  // "MUST NOT be used unless extended headers were negotiated", and the other way round.
  ExpectStatusLie(kStructured, Chunk(kStructured, 1, 6, U32(7) + U32(1) + U64(4096) + U64(0)),
                  "type 6 answers");
  ExpectStatusLie(kExtended, Chunk(kExtended, 1, 5, fine, 4096), "a chunk of type 5 answers");
  ExpectStatusLie(kExtended, extended(U32(7) + U32(2) + U64(4096) + U64(0)), "malformed");
  ExpectStatusLie(kExtended, extended(U32(7) + U32(0)), "malformed");
  ExpectStatusLie(kExtended, extended(U32(7) + U32(2) + U64(UINT64_MAX) + U64(0) + U64(1) + U64(0)),
                  "goes on behind its end");
}

// What is kept of an answer is bounded, and what is left out is asked for again by whoever wants it.
TEST_F(HostileServerTest, AMillionExtentsAreNotKept) {
  Start(kStructured);
  std::vector<ContextStatus> status;
  std::future<IoResult> asked = BeginStatus(0, 1 << 30, &status);
  peer_->Receive(kRequestSize);
  std::string extents = U32(7);
  const std::string one = U32(512) + U32(0), other = U32(512) + U32(3);
  for (int i = 0; i < 1 << 19; ++i) extents += one + other;
  Send(Chunk(kStructured, 1, 5, extents));
  EXPECT_EQ(ErrorOf(asked), 0);
  EXPECT_EQ(status[0].extents.size(), 8192u);
  EXPECT_TRUE(Status().ok());
}

TEST_F(HostileServerTest, EverybodyHearsOfTheEnd) {
  Start(kSimple);
  std::vector<std::vector<uint8_t>> buffers(50, std::vector<uint8_t>(512));
  std::vector<std::future<IoResult>> reads;
  for (auto& buffer : buffers) reads.push_back(BeginRead(0, &buffer));
  const std::vector<uint8_t> data(1 << 20, 'w');
  reads.push_back(
      Begin([&data](RemoteConnection& client) { return client.Write(0, data, WriteFlags::kNone); }));
  peer_->Receive(kRequestSize * 50);
  Send(Hex("67446698 00000000 00000000000000ff"));
  for (std::future<IoResult>& read : reads) EXPECT_EQ(ErrorOf(read), EIO);
  ExpectBroken(absl::StatusCode::kInternal, "the cookie 255");
}

TEST_F(HostileServerTest, SilenceEndsAtTheDeadline) {
  options_.request_timeout = absl::Milliseconds(50);
  Start(kSimple);
  std::vector<uint8_t> data(512);
  std::future<IoResult> read = BeginRead(0, &data);
  EXPECT_EQ(ErrorOf(read), EIO);
  ExpectBroken(absl::StatusCode::kDeadlineExceeded, "a request was not answered within 50ms");
}

// It answers others, but never the first: that is no excuse.
TEST_F(HostileServerTest, TheOldestRequestCounts) {
  options_.request_timeout = absl::Milliseconds(200);
  Start(kSimple);
  std::vector<uint8_t> data(512);
  std::future<IoResult> forgotten = BeginRead(0, &data);
  peer_->Receive(kRequestSize);
  // One flush after the other is answered, as long as there is a connection.
  for (uint64_t cookie = 2; Status().ok(); ++cookie) {
    std::future<IoResult> flush = Begin([](RemoteConnection& client) { return client.Flush(); });
    std::vector<uint8_t> request(kRequestSize);
    if (recv(peer_->fd(), request.data(), request.size(), MSG_WAITALL) != kRequestSize) break;
    std::vector<uint8_t> reply(kSimpleReplySize);
    EncodeSimpleReply({Error::kNone, cookie}, absl::MakeSpan(reply));
    if (!peer_->Send(reply)) break;
    const int error = ErrorOf(flush);
    EXPECT_TRUE(error == 0 || error == EIO);
  }
  EXPECT_EQ(ErrorOf(forgotten), EIO);
  ExpectBroken(absl::StatusCode::kDeadlineExceeded, "was not answered");
}

// A server that does not read stops a large write, and the deadline ends it; its data are let go only then.
TEST_F(HostileServerTest, AServerThatDoesNotRead) {
  options_.request_timeout = absl::Milliseconds(50);
  Start(kSimple, 4096);
  const std::vector<uint8_t> data(8 << 20, 'w');
  std::future<IoResult> write =
      Begin([&data](RemoteConnection& client) { return client.Write(0, data, WriteFlags::kNone); });
  EXPECT_EQ(ErrorOf(write), EIO);
  ExpectBroken(absl::StatusCode::kDeadlineExceeded, "was not answered");
}

// It may: an error can be known from the request's header. The write ends when its data have left.
TEST_F(HostileServerTest, AWriteAnsweredBeforeItsDataAreTaken) {
  Start(kSimple, 4096);
  const std::vector<uint8_t> data(8 << 20, 'w');
  std::future<IoResult> write =
      Begin([&data](RemoteConnection& client) { return client.Write(0, data, WriteFlags::kNone); });
  peer_->Receive(kRequestSize);
  Send(Hex("67446698 00000001 0000000000000001"));
  EXPECT_EQ(peer_->Receive(data.size()), data);
  EXPECT_EQ(ErrorOf(write), EPERM);
  // Answered twice is once too often.
  Send(Hex("67446698 00000001 0000000000000001"));
  std::future<IoResult> flush = Begin([](RemoteConnection& client) { return client.Flush(); });
  EXPECT_EQ(ErrorOf(flush), EIO);
  ExpectBroken(absl::StatusCode::kInternal, "the cookie 1 of no request");
}

TEST_F(HostileServerTest, AnsweredEarlyAndThenGone) {
  Start(kSimple, 4096);
  const std::vector<uint8_t> data(8 << 20, 'w');
  std::future<IoResult> write =
      Begin([&data](RemoteConnection& client) { return client.Write(0, data, WriteFlags::kNone); });
  peer_->Receive(kRequestSize);
  Send(Hex("67446698 00000000 0000000000000001"));
  peer_->Close();
  EXPECT_EQ(ErrorOf(write), EIO);
}

// "If the client receives an NBD_ESHUTDOWN error it MUST initiate a soft disconnect."
TEST_F(HostileServerTest, AServerThatStops) {
  Start(kSimple);
  std::vector<uint8_t> one(4), two(4);
  std::future<IoResult> first = BeginRead(0, &one), second = BeginRead(512, &two);
  peer_->Receive(2 * kRequestSize);
  Send(Hex("67446698 0000006c 0000000000000001"));
  EXPECT_EQ(ErrorOf(first), ESHUTDOWN);
  std::future<IoResult> third = Begin([](RemoteConnection& client) { return client.Flush(); });
  EXPECT_EQ(ErrorOf(third), ESHUTDOWN);
  Send(Hex("67446698 00000000 0000000000000002") + "data");
  EXPECT_EQ(ErrorOf(second), 0);
  EXPECT_EQ(Received(28), Hex("25609513 0000 0002 0000000000000000 0000000000000000 00000000"));
}

TEST_F(HostileServerTest, ADisconnectIsNotWaitedForWithoutEnd) {
  options_.disconnect_timeout = absl::Milliseconds(20);
  Start(kSimple);
  Disconnect();  // The server never closes its end.
  EXPECT_EQ(Received(28).substr(6, 2), U16(2));
  EXPECT_TRUE(peer_->AtEnd());
}

}  // namespace
}  // namespace berth::nbd
