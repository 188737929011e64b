// Rules of the specification that hold for every request. docs/protocol.md says which.
#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "nbd/session.h"
#include "nbd/session_fixture.h"

namespace berth::nbd {
namespace {

using Event = RecordingDevice::Event;
using Kind = RecordingDevice::Kind;
using Phase = RecordingDevice::Phase;

class SessionRulesTest : public SessionTest {
 protected:
  // The chunks of one reply; all that a request got.
  std::vector<RawClient::Chunk> ReceiveReply(uint64_t cookie) {
    std::vector<RawClient::Chunk> chunks;
    do {
      chunks.push_back(client_->ReceiveChunk());
      EXPECT_EQ(chunks.back().header.cookie, cookie);
    } while (!chunks.back().done() && !testing::Test::HasFailure());
    return chunks;
  }

  // The cookie of the next reply, simple or of one chunk; `data` is what a simple reply has.
  uint64_t ReceiveCookie(size_t data = 0) {
    // All have the magic number first, and the cookie at 8.
    const std::vector<uint8_t> start = client_->Receive(kSimpleReplySize);
    if (start.size() < kSimpleReplySize) return 0;
    switch (Load32(start.data())) {
      case 0x67446698:
        client_->Receive(data);
        break;
      case 0x668e33ef:
        client_->Receive(Load32(client_->Receive(4).data()));
        break;
      case 0x6e8a278c:
        client_->Receive(Load64(&client_->Receive(16)[8]));
        break;
      default:
        ADD_FAILURE() << "no reply: " << Load32(start.data());
    }
    return Load64(&start[8]);
  }
};

// "Transmission": the cookie is the client's, and opaque; several requests may have the same.
TEST_F(SessionRulesTest, CookiesComeBackAsTheyWere) {
  const std::vector<uint64_t> cookies = {0, ~uint64_t{0}, 1, 0x6744669800000000, 1, 1, 0x8000000000000000};
  for (const ReplyStyle style : {ReplyStyle::kSimple, ReplyStyle::kStructured, ReplyStyle::kExtended}) {
    UseStructuredReplies(style);
    Start();
    client_->SetStyle(style == ReplyStyle::kExtended ? style : ReplyStyle::kStructured);
    faulty_->Hold(FaultyDevice::kRead);
    for (const uint64_t cookie : cookies) ASSERT_TRUE(client_->Send({0, Command::kRead, cookie, 0, 512}));
    ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kRead, cookies.size()));
    faulty_->Release(FaultyDevice::kRead);
    std::multiset<uint64_t> seen;
    for (size_t i = 0; i < cookies.size(); ++i) seen.insert(ReceiveCookie(512));
    EXPECT_EQ(seen, std::multiset<uint64_t>(cookies.begin(), cookies.end()));
    // Every other command, and what is refused.
    const uint16_t payload = style == ReplyStyle::kExtended ? kCommandFlagPayloadLen : 0;
    for (const uint64_t cookie : cookies) {
      for (const Request& request : {Request{payload, Command::kWrite, cookie, 0, 512},
                                     {payload, Command::kWrite, cookie, kSize, 512},
                                     {0, Command::kRead, cookie, kSize, 512},
                                     {0, Command::kFlush, cookie, 0, 0},
                                     {0, Command::kTrim, cookie, 0, 512},
                                     {0, Command::kCache, cookie, 0, 512},
                                     {0, Command::kWriteZeroes, cookie, 0, 512},
                                     {0, Command::kBlockStatus, cookie, 0, 512},
                                     {0, static_cast<Command>(99), cookie, 0, 0}}) {
        const bool writes = request.command == Command::kWrite;
        ASSERT_TRUE(client_->Send(request, writes ? Pattern(512, 1) : std::vector<uint8_t>()));
        ASSERT_EQ(ReceiveCookie(), cookie) << static_cast<int>(request.command);
      }
    }
    client_->Close();
    WaitForEnd();
  }
}

// "Ordering of messages and writes": no reply to NBD_CMD_FLUSH, or to what has NBD_CMD_FLAG_FUA, before the
// data is where it belongs.
TEST_F(SessionRulesTest, DurableRepliesWaitForTheDevice) {
  Start();
  const struct {
    Request request;
    FaultyDevice::Operation held;
  } waits[] = {
      {{0, Command::kFlush, 1, 0, 0}, FaultyDevice::kFlush},
      {{kCommandFlagFua, Command::kWrite, 2, 0, 512}, FaultyDevice::kWrite},
      {{kCommandFlagFua, Command::kWriteZeroes, 3, 0, 512}, FaultyDevice::kZero},
      // A discard has no FUA of its own, so the flush after it is what counts.
      {{kCommandFlagFua, Command::kTrim, 4, 0, 512}, FaultyDevice::kFlush},
  };
  for (const auto& [request, held] : waits) {
    faulty_->Hold(held);
    const bool writes = request.command == Command::kWrite;
    ASSERT_TRUE(client_->Send(request, writes ? Pattern(512, 1) : std::vector<uint8_t>()));
    ASSERT_TRUE(faulty_->WaitUntilHeld(held, 1));
    FinishTurn();
    EXPECT_TRUE(client_->Quiet()) << "answered too early: " << request.cookie;
    faulty_->Release(held);
    EXPECT_EQ(client_->ReceiveSimple().cookie, request.cookie);
  }
}

// "Ordering of messages and writes": a flush covers every kind of write that was answered before it.
TEST_F(SessionRulesTest, AFlushFollowsEveryKindOfWrite) {
  Start();
  EXPECT_EQ(Write(0, Pattern(512, 1)), Error::kNone);
  EXPECT_EQ(Ask(Command::kWriteZeroes, 0, 512), Error::kNone);
  EXPECT_EQ(Ask(Command::kTrim, 0, 512), Error::kNone);
  EXPECT_EQ(Ask(Command::kFlush, 0, 0), Error::kNone);
  const std::vector<Event> events = recording_->TakeEvents();
  ASSERT_EQ(events.size(), 8u);
  for (size_t i = 0; i < 6; ++i) EXPECT_NE(events[i].kind, Kind::kFlush);
  EXPECT_EQ(events[6].kind, Kind::kFlush);
  EXPECT_EQ(events[6].phase, Phase::kStart);
}

// NBD_CMD_FLUSH: its error is the client's to know.
TEST_F(SessionRulesTest, AFailedFlushIsNoSuccess) {
  Start();
  faulty_->Fail(FaultyDevice::kFlush, EIO, 2);
  EXPECT_EQ(Ask(Command::kFlush, 0, 0), Error::kIo);
  EXPECT_EQ(Ask(Command::kTrim, 0, 512, kCommandFlagFua), Error::kIo);
  EXPECT_EQ(Ask(Command::kFlush, 0, 0), Error::kNone);
}

// NBD_CMD_READ, simple replies: an error has no payload.
TEST_F(SessionRulesTest, FailedReadsCarryNoData) {
  Start();
  faulty_->Fail(FaultyDevice::kRead, EIO, 1);
  EXPECT_EQ(Ask(Command::kRead, 0, 4096), Error::kIo);
  EXPECT_EQ(Ask(Command::kRead, kSize, 4096), Error::kInval);
  EXPECT_EQ(Ask(Command::kRead, 0, 4096, kCommandFlagNoHole), Error::kInval);
  EXPECT_TRUE(client_->Quiet());
  EXPECT_EQ(Read(0, 512), std::vector<uint8_t>(512));
}

// "Structured reply chunk message": no simple reply to NBD_CMD_READ, "even for the case of an early
// NBD_EINVAL due to bad flags". The error stands alone, with words.
TEST_F(SessionRulesTest, RefusedReadsAreChunks) {
  UseStructuredReplies();
  Start();
  const Request refused[] = {
      {kCommandFlagNoHole, Command::kRead, 1, 0, 512},
      {0x8000, Command::kRead, 2, 0, 512},
      {0, Command::kRead, 3, kSize, 1},
      {0, Command::kRead, 4, ~uint64_t{0}, 1},
      {kCommandFlagReqOne, Command::kRead, 5, 0, 0},
  };
  for (const Request& request : refused) {
    ASSERT_TRUE(client_->Send(request));
    const std::vector<RawClient::Chunk> chunks = ReceiveReply(request.cookie);
    ASSERT_EQ(chunks.size(), 1u);
    EXPECT_NE(static_cast<uint16_t>(chunks[0].header.type) & 0x8000, 0);
    EXPECT_EQ(chunks[0].error(), Error::kInval);
    EXPECT_FALSE(chunks[0].message().empty());
  }
}

// "Structured reply types", NBD_CMD_READ: content chunks lie inside the request, do not overlap, cover all of
// it, and the last chunk alone is DONE. With NBD_CMD_FLAG_DF there is one, of data, whatever is in it.
TEST_F(SessionRulesTest, ContentChunksCoverAReadOnce) {
  UseStructuredReplies();
  Start();
  // Holes and data in turn, from 4 KiB to 1 MiB.
  std::vector<uint8_t> expected(16 << 20);
  for (size_t at = 0, run = 4096; at + 2 * run <= expected.size(); at += 2 * run, run = run * 2 % 1044480) {
    const std::vector<uint8_t> data = Pattern(run, static_cast<uint8_t>(run >> 12));
    ASSERT_EQ(Write(at + run, data), Error::kNone);
    std::copy(data.begin(), data.end(), expected.begin() + static_cast<ptrdiff_t>(at + run));
  }
  uint64_t cookie = 100;
  for (const auto& [offset, length] : std::vector<std::pair<uint64_t, uint64_t>>{{0, 16 << 20},
                                                                                 {0, 4096},
                                                                                 {1, 65'536},
                                                                                 {4095, 2},
                                                                                 {4097, 300'001},
                                                                                 {8 << 20, 1 << 20},
                                                                                 {48 << 20, 1 << 20}}) {
    for (const uint16_t flags : {uint16_t{0}, kCommandFlagDf}) {
      SCOPED_TRACE(testing::Message() << offset << "+" << length << " flags " << flags);
      ASSERT_TRUE(client_->Send({flags, Command::kRead, ++cookie, offset, length}));
      std::vector<uint8_t> content(length, 0xee);
      std::map<uint64_t, uint64_t> ends;  // Of the content chunks, by their beginnings.
      size_t contents = 0;
      for (const RawClient::Chunk& chunk : ReceiveReply(cookie)) {
        if (chunk.header.type == ChunkType::kNone) continue;
        ++contents;
        const bool hole = chunk.header.type == ChunkType::kOffsetHole;
        ASSERT_TRUE(hole || chunk.header.type == ChunkType::kOffsetData);
        ASSERT_FALSE(hole && flags == kCommandFlagDf);
        ASSERT_GE(chunk.payload.size(), 9u);
        const uint64_t at = Load64(chunk.payload.data());
        const uint64_t size = hole ? Load32(&chunk.payload[8]) : chunk.payload.size() - 8;
        ASSERT_GT(size, 0u);
        ASSERT_GE(at, offset);
        ASSERT_LE(at + size, offset + length);
        ASSERT_TRUE(ends.emplace(at, at + size).second) << "described twice: " << at;
        const auto to = content.begin() + static_cast<ptrdiff_t>(at - offset);
        if (hole) {
          std::fill_n(to, size, uint8_t{0});
        } else {
          std::copy(chunk.payload.begin() + 8, chunk.payload.end(), to);
        }
      }
      uint64_t covered = offset;
      for (const auto& [begin, end] : ends) {
        EXPECT_EQ(begin, covered) << "a gap, or an overlap";
        covered = end;
      }
      EXPECT_EQ(covered, offset + length);
      std::vector<uint8_t> wanted(length);
      if (offset < expected.size()) {
        std::copy_n(expected.begin() + static_cast<ptrdiff_t>(offset),
                    std::min<uint64_t>(length, expected.size() - offset), wanted.begin());
      }
      EXPECT_TRUE(content == wanted);
      if (flags == kCommandFlagDf) {
        EXPECT_EQ(contents, 1u);
      }
    }
  }
}

// NBD_CMD_DISC: there is no reply. Its offset and length MUST be zero, but a good-bye is a good-bye.
TEST_F(SessionRulesTest, ADisconnectHasNoReply) {
  for (const Request& request :
       {Request{0, Command::kDisconnect, 1, 0, 0}, Request{0, Command::kDisconnect, 2, 4096, 512}}) {
    Start();
    ASSERT_TRUE(client_->Send(request));
    EXPECT_TRUE(client_->AtEnd());
    WaitForEnd();
    EXPECT_TRUE(session_->end_reason().ok()) << session_->end_reason();
  }
}

// NBD_CMD_READ and the others: "the server SHOULD NOT disconnect" at a length of 0.
TEST_F(SessionRulesTest, NoLengthEndsNothing) {
  UseStructuredReplies();
  Start();
  uint64_t cookie = 0;
  for (const Command command : {Command::kRead, Command::kWrite, Command::kTrim, Command::kCache,
                                Command::kWriteZeroes, Command::kBlockStatus}) {
    for (const uint64_t offset : {uint64_t{0}, kSize, kSize + 1, ~uint64_t{0}}) {
      ASSERT_TRUE(client_->Send({0, command, ++cookie, offset, 0}));
    }
  }
  for (uint64_t left = cookie; left > 0; --left) ReceiveCookie();
  ASSERT_TRUE(client_->Send({0, Command::kRead, ++cookie, 0, 512}));
  EXPECT_EQ(ReceiveReply(cookie).size(), 1u);
}

// "Size constraints": up to 2^25 bytes are no attack, even refused ones; the limit is twice that, to the
// byte.
TEST_F(SessionRulesTest, APayloadBeyondPatienceEndsTheSession) {
  constexpr uint64_t kPatience = 2 * uint64_t{kMaxPayload};
  Start();
  EXPECT_EQ(Write(0, std::vector<uint8_t>(kPatience)), Error::kInval);
  EXPECT_EQ(Read(0, 512), std::vector<uint8_t>(512));
  ASSERT_TRUE(client_->Send({0, Command::kWrite, 1, 0, kPatience + 1}));
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
  EXPECT_EQ(session_->end_reason().code(), absl::StatusCode::kInvalidArgument);
}

// "Terminating the transmission phase": a server that stops does not wait for the rest of a payload, whether
// it would be written or read past; what is not whole is not written.
TEST_F(SessionRulesTest, AStopDoesNotWaitForAPayload) {
  for (const Request& request :
       {Request{0, Command::kWrite, 1, 0, 512}, Request{0, Command::kWrite, 2, 0, 1 << 20},
        Request{0, Command::kWrite, 3, kSize, 512}, Request{0, Command::kWrite, 4, kSize, 1 << 20}}) {
    Start();
    std::vector<uint8_t> half(kRequestSize + request.length / 2);
    EncodeRequest(request, absl::MakeSpan(half));
    ASSERT_TRUE(client_->Send(half));
    FinishTurn();
    session_->Stop();
    EXPECT_TRUE(client_->AtEnd());
    WaitForEnd();
  }
  EXPECT_EQ(faulty_->count(FaultyDevice::kWrite), 0u);
}

// NBD_CMD_CACHE: "there MUST NOT be any difference in semantics".
TEST_F(SessionRulesTest, ACacheRequestChangesNothing) {
  Start();
  const std::vector<uint8_t> data = Pattern(100'000, 1);
  EXPECT_EQ(Write(5000, data), Error::kNone);
  faulty_->Fail(FaultyDevice::kPrefetch, EIO, 1);
  EXPECT_EQ(Ask(Command::kCache, 0, 200'000), Error::kIo);
  EXPECT_EQ(Ask(Command::kCache, 0, 200'000), Error::kNone);
  EXPECT_EQ(Read(5000, data.size()), data);
}

// NBD_CMD_WRITE_ZEROES: it "MUST ensure that the data reads back as zero", and no more than that.
TEST_F(SessionRulesTest, ZeroedRangesReadAsZeroes) {
  Start();
  for (uint16_t flags = 0; flags < 4; ++flags) {
    EXPECT_EQ(Write(0, std::vector<uint8_t>(200'000, 0xab)), Error::kNone);
    EXPECT_EQ(Ask(Command::kWriteZeroes, 1001, 150'003, flags), Error::kNone);
    std::vector<uint8_t> expected(200'000, 0xab);
    std::fill_n(expected.begin() + 1001, 150'003, uint8_t{0});
    EXPECT_EQ(Read(0, 200'000), expected) << flags;
  }
  // NBD_CMD_FLAG_FAST_ZERO: not served means not changed.
  EXPECT_EQ(Write(0, std::vector<uint8_t>(512, 0xab)), Error::kNone);
  faulty_->Fail(FaultyDevice::kZero, ENOTSUP, 1);
  EXPECT_EQ(Ask(Command::kWriteZeroes, 0, 512, kCommandFlagFastZero), Error::kNotSup);
  EXPECT_EQ(Read(0, 512), std::vector<uint8_t>(512, 0xab));
}

// NBD_CMD_BLOCK_STATUS with NBD_CMD_FLAG_REQ_ONE: one descriptor, not longer than the request.
TEST_F(SessionRulesTest, OneExtentIsNotLongerThanTheRequest) {
  UseStructuredReplies();
  Start();
  EXPECT_EQ(Write(1 << 20, Pattern(1 << 20, 1)), Error::kNone);
  uint64_t cookie = 100;
  for (const uint64_t length : {uint64_t{1}, uint64_t{4096}, uint64_t{1 << 20}, uint64_t{3 << 20}, kSize}) {
    ASSERT_TRUE(client_->Send({kCommandFlagReqOne, Command::kBlockStatus, ++cookie, 0, length}));
    const std::vector<RawClient::Chunk> chunks = ReceiveReply(cookie);
    ASSERT_EQ(chunks.size(), 1u);
    ASSERT_EQ(chunks[0].payload.size(), 12u);
    EXPECT_EQ(Load32(&chunks[0].payload[4]), std::min<uint64_t>(length, 1 << 20));
    EXPECT_EQ(Load32(&chunks[0].payload[8]), kStateHole | kStateZero) << "and no other bits";
  }
}

}  // namespace
}  // namespace berth::nbd
