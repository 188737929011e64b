// A session with extended headers (the branch extension-ext-header of the specification).
#include <algorithm>
#include <cerrno>
#include <limits>

#include "nbd/session.h"
#include "nbd/session_fixture.h"
#include "nbd/zero_runs.h"

namespace berth::nbd {
namespace {

using Kind = RecordingDevice::Kind;

class SessionExtendedTest : public SessionTest {
 protected:
  void SetUp() override {
    SessionTest::SetUp();
    UseStructuredReplies(ReplyStyle::kExtended);
  }

  Error AskError(Command command, uint64_t offset, uint64_t length, uint16_t flags = 0,
                 absl::Span<const uint8_t> payload = {}) {
    const RawClient::Chunk chunk = AskChunk(command, offset, length, flags, payload);
    return chunk.header.type == ChunkType::kNone ? Error::kNone : chunk.error();
  }
  Error WriteExtended(uint64_t offset, const std::vector<uint8_t>& data, uint16_t flags = 0) {
    return AskError(Command::kWrite, offset, data.size(), flags | kCommandFlagPayloadLen, data);
  }

  static std::vector<uint8_t> Query(uint64_t length, const std::vector<uint32_t>& ids) {
    std::vector<uint8_t> payload(8 + 4 * ids.size());
    Store64(payload.data(), length);
    for (size_t i = 0; i < ids.size(); ++i) Store32(&payload[8 + 4 * i], ids[i]);
    return payload;
  }
  Error AskQuery(uint64_t offset, const std::vector<uint8_t>& payload, uint16_t flags = 0) {
    return AskError(Command::kBlockStatus, offset, payload.size(), flags | kCommandFlagPayloadLen, payload);
  }
  // Nothing was lost or left over.
  void ExpectInStep() { EXPECT_EQ(AskError(Command::kFlush, 0, 0), Error::kNone); }
};

// "Extended reply chunk message", byte for byte; a reply without payload too.
TEST_F(SessionExtendedTest, TheBytesOfARequestAndItsReply) {
  Start();
  const std::vector<uint8_t> request = {0x21, 0xe4, 0x1c, 0x71, 0, 0, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8,
                                        0,    0,    0,    0,    0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0};
  ASSERT_TRUE(client_->Send(request));
  EXPECT_EQ(client_->Receive(32),
            (std::vector<uint8_t>{0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8,
                                  0,    0,    0,    0,    0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0}));
}

TEST_F(SessionExtendedTest, DataGoesThereAndBack) {
  Start();
  for (const size_t size : {1u, 512u, 20'000u, 300'000u}) {
    const std::vector<uint8_t> data = Pattern(size, 3);
    EXPECT_EQ(WriteExtended(5000, data), Error::kNone);
    const RawClient::Chunk chunk = AskChunk(Command::kRead, 5000, size);
    EXPECT_EQ(chunk.header.type, ChunkType::kOffsetData);
    ASSERT_EQ(chunk.payload.size(), 8 + size);
    EXPECT_EQ(Load64(chunk.payload.data()), 5000u);
    EXPECT_EQ(std::vector<uint8_t>(chunk.payload.begin() + 8, chunk.payload.end()), data);
  }
  EXPECT_EQ(AskChunk(Command::kRead, 0, 0).header.type, ChunkType::kNone);
}

TEST_F(SessionExtendedTest, HolesAreChunksOfTheirOwn) {
  UseBareDevice();
  Start();
  constexpr uint64_t kData = 3 * kZeroGranule;
  const std::vector<uint8_t> data = Pattern(5000, 1);
  EXPECT_EQ(WriteExtended(kData, data), Error::kNone);
  ASSERT_TRUE(client_->Send({0, Command::kRead, 5, 4096, 1 << 20}));
  const RawClient::Chunk before = client_->ReceiveChunk();
  ASSERT_EQ(before.header.type, ChunkType::kOffsetHole);
  ASSERT_EQ(before.payload.size(), 12u);
  EXPECT_EQ(Load64(&before.payload[0]), 4096u);
  EXPECT_EQ(Load32(&before.payload[8]), kData - 4096);
  EXPECT_FALSE(before.done());
  const RawClient::Chunk content = client_->ReceiveChunk();
  ASSERT_EQ(content.header.type, ChunkType::kOffsetData);
  ASSERT_EQ(content.payload.size(), 8 + kZeroGranule);
  EXPECT_EQ(Load64(&content.payload[0]), kData);
  EXPECT_TRUE(std::equal(data.begin(), data.end(), content.payload.begin() + 8));
  EXPECT_FALSE(content.done());
  const RawClient::Chunk after = client_->ReceiveChunk();
  ASSERT_EQ(after.header.type, ChunkType::kOffsetHole);
  EXPECT_EQ(Load64(&after.payload[0]), kData + kZeroGranule);
  EXPECT_EQ(Load32(&after.payload[8]), (1 << 20) + 4096 - kData - kZeroGranule);
  EXPECT_TRUE(after.done());
}

TEST_F(SessionExtendedTest, RequestsArriveInAnyPieces) {
  UseBareDevice();
  Start();
  const std::vector<uint8_t> data = Pattern(100, 3);
  std::vector<uint8_t> message(2 * kExtendedRequestSize);
  EncodeExtendedRequest({kCommandFlagPayloadLen, Command::kWrite, 1, 50, 100},
                        absl::MakeSpan(message).first(kExtendedRequestSize));
  EncodeExtendedRequest({0, Command::kRead, 2, 50, 100},
                        absl::MakeSpan(message).subspan(kExtendedRequestSize));
  message.insert(message.begin() + kExtendedRequestSize, data.begin(), data.end());
  for (size_t i = 0; i < message.size(); ++i) {
    ASSERT_TRUE(client_->Send(absl::MakeConstSpan(message).subspan(i, 1)));
    FinishTurn();
  }
  EXPECT_EQ(client_->ReceiveChunk().header.cookie, 1u);
  EXPECT_EQ(client_->ReceiveChunk().payload.size(), 108u);
}

// "Only when length is used as an effect length will it utilize a full 64-bit value."
TEST_F(SessionExtendedTest, EffectsReachTheWholeExport) {
  constexpr uint64_t kHuge = uint64_t{5} << 40;
  UseDevice(kHuge);
  Start();
  EXPECT_EQ(AskError(Command::kWriteZeroes, 0, kHuge), Error::kNone);
  EXPECT_EQ(AskError(Command::kTrim, 512, kHuge - 512), Error::kNone);
  EXPECT_EQ(AskError(Command::kCache, 0, kHuge), Error::kNone);
  uint64_t zeroed = 0, discarded = 0;
  for (const RecordingDevice::Event& event : recording_->TakeEvents()) {
    if (event.phase != RecordingDevice::Phase::kStart) continue;
    if (event.kind == Kind::kZero) {
      EXPECT_EQ(event.offset, zeroed);
      zeroed += event.length;
    } else if (event.kind == Kind::kDiscard) {
      discarded += event.length;
    }
  }
  EXPECT_EQ(zeroed, kHuge);
  EXPECT_EQ(discarded, kHuge - 512);
  EXPECT_EQ(AskError(Command::kWriteZeroes, 1, kHuge), Error::kNoSpc);
  EXPECT_EQ(AskError(Command::kTrim, 4096, std::numeric_limits<uint64_t>::max()), Error::kInval);
  EXPECT_EQ(AskError(Command::kCache, 4096, std::numeric_limits<uint64_t>::max() - 4095), Error::kInval);
}

TEST_F(SessionExtendedTest, ALongZeroKeepsItsFlags) {
  UseDevice(uint64_t{16} << 30);
  Start();
  constexpr uint64_t kLength = uint64_t{9} << 30;
  EXPECT_EQ(AskError(Command::kWriteZeroes, 0, kLength, kCommandFlagFua), Error::kNone);
  const std::vector<RecordingDevice::Event> events = recording_->TakeEvents();
  ASSERT_EQ(events.size(), 8u);
  for (size_t i = 0; i < 6; ++i) EXPECT_TRUE(events[i].kind == Kind::kZero);
  EXPECT_EQ(events[6].kind, Kind::kFlush) << "FUA covers the whole range";
  // Memory that holds its space would be 9 GiB of it.
  faulty_->Fail(FaultyDevice::kZero, EIO);
  EXPECT_EQ(AskError(Command::kWriteZeroes, 0, kLength, kCommandFlagNoHole), Error::kIo);
  EXPECT_TRUE(recording_->TakeEvents()[0].no_unmap);
}

// NBD_CMD_FLAG_FAST_ZERO: "SHOULD NOT alter the contents of the export when returning an NBD_ENOTSUP
// failure". Only who sees all of the range can keep to that.
TEST_F(SessionExtendedTest, ALongFastZeroIsDoneAsAWholeOrNotAtAll) {
  UseDevice(uint64_t{16} << 30);
  Start();
  const std::vector<uint8_t> data = Pattern(512, 1);
  ASSERT_EQ(WriteExtended(0, data), Error::kNone);
  recording_->TakeEvents();
  constexpr uint64_t kLength = uint64_t{9} << 30;
  faulty_->Fail(FaultyDevice::kZero, ENOTSUP);
  EXPECT_EQ(AskError(Command::kWriteZeroes, 0, kLength, kCommandFlagFastZero), Error::kNotSup);
  const RawClient::Chunk chunk = AskChunk(Command::kRead, 0, data.size());
  EXPECT_EQ(std::vector<uint8_t>(chunk.payload.begin() + 8, chunk.payload.end()), data);
  const std::vector<RecordingDevice::Event> events = recording_->TakeEvents();
  ASSERT_GE(events.size(), 2u);
  EXPECT_EQ(events[0].length, kLength);
  EXPECT_TRUE(events[0].fast_only);
}

// A server that stops waits for the piece that runs, and not for a whole disk.
TEST_F(SessionExtendedTest, ALongEffectEndsWhenTheServerStops) {
  UseDevice(uint64_t{8} << 30);
  for (const Command command : {Command::kWriteZeroes, Command::kTrim}) {
    const auto operation = command == Command::kTrim ? FaultyDevice::kDiscard : FaultyDevice::kZero;
    Start();
    faulty_->Hold(operation);
    ASSERT_TRUE(client_->Send({0, command, 1, 0, uint64_t{8} << 30}));
    ASSERT_TRUE(faulty_->WaitUntilHeld(operation, 1));
    session_->Stop();
    FinishTurn();
    const uint64_t before = faulty_->count(operation);
    faulty_->Release(operation);
    EXPECT_EQ(client_->ReceiveChunk().error(), Error::kShutdown);
    EXPECT_EQ(faulty_->count(operation), before);
    WaitForEnd();
  }
}

// "Size constraints": what is no faster than a write MAY be refused.
TEST_F(SessionExtendedTest, ReadsAreLimitedByThePayload) {
  UseDevice(uint64_t{8} << 30);
  Start();
  EXPECT_EQ(AskError(Command::kRead, 0, kMaxPayload + 1), Error::kOverflow);
  EXPECT_EQ(AskError(Command::kRead, 0, uint64_t{5} << 30), Error::kOverflow);
  ExpectInStep();
}

// ---- NBD_CMD_FLAG_PAYLOAD_LEN.

// "With extended headers, the flag MUST be set for NBD_CMD_WRITE". Without it there is no payload to read
// past.
TEST_F(SessionExtendedTest, AWriteWithoutPayloadIsRefused) {
  Start();
  EXPECT_EQ(AskError(Command::kWrite, 0, 512), Error::kInval);
  EXPECT_EQ(AskError(Command::kWrite, 0, std::numeric_limits<uint64_t>::max()), Error::kInval);
  ExpectInStep();
  EXPECT_EQ(faulty_->count(FaultyDevice::kWrite), 0u);
}

// "in all other cases, a server SHOULD gracefully consume length bytes of payload (even if it then replies
// with an NBD_EINVAL failure because the particular command was not expecting a payload)".
TEST_F(SessionExtendedTest, PayloadsThatNobodyExpectsAreReadPast) {
  Start();
  for (const size_t size : {1u, 4096u, 300'000u, kMaxPayload}) {
    const std::vector<uint8_t> payload = Pattern(size, 1);
    for (const Command command : {Command::kRead, Command::kFlush, Command::kTrim, Command::kCache,
                                  Command::kWriteZeroes, Command::kBlockStatus, static_cast<Command>(99)}) {
      EXPECT_EQ(AskError(command, 0, size, kCommandFlagPayloadLen, payload), Error::kInval) << size;
    }
    EXPECT_EQ(AskError(Command::kWrite, kSize, size, kCommandFlagPayloadLen, payload), Error::kNoSpc);
  }
  ExpectInStep();
  EXPECT_EQ(recording_->TakeEvents().size(), 2u) << "the flush, and nothing else";
}

// "A server SHOULD initiate hard disconnect if a client sets the NBD_CMD_FLAG_PAYLOAD_LEN flag and uses a
// length larger than a server's advertised or default maximum payload length".
TEST_F(SessionExtendedTest, AnOversizedPayloadEndsTheSession) {
  for (const Command command : {Command::kWrite, Command::kRead, Command::kBlockStatus}) {
    for (const uint64_t length :
         {uint64_t{kMaxPayload} + 1, uint64_t{1} << 32, std::numeric_limits<uint64_t>::max()}) {
      Start();
      ASSERT_TRUE(client_->Send({kCommandFlagPayloadLen, command, 1, 0, length}));
      EXPECT_TRUE(client_->AtEnd());
      WaitForEnd();
      EXPECT_EQ(session_->end_reason().code(), absl::StatusCode::kInvalidArgument);
    }
  }
}

// "In the compact style, the client MUST NOT use the NBD_CMD_FLAG_PAYLOAD_LEN flag".
TEST_F(SessionExtendedTest, CompactRequestsHaveNoPayloadFlag) {
  UseStructuredReplies(ReplyStyle::kStructured);
  Start();
  const std::vector<uint8_t> data = Pattern(512, 1);
  EXPECT_EQ(AskChunk(Command::kWrite, 0, 512, kCommandFlagPayloadLen, data).error(), Error::kInval);
  EXPECT_EQ(AskChunk(Command::kBlockStatus, 0, 512, kCommandFlagPayloadLen).error(), Error::kInval);
}

// ---- NBD_CMD_BLOCK_STATUS.

// NBD_REPLY_TYPE_BLOCK_STATUS_EXT, whatever the lengths are.
TEST_F(SessionExtendedTest, BlockStatusHas64Bits) {
  constexpr uint64_t kHuge = uint64_t{5} << 40;
  constexpr uint64_t kWritten = uint64_t{3} << 40;
  UseDevice(kHuge);
  Start();
  EXPECT_EQ(WriteExtended(kWritten, Pattern(4096, 1)), Error::kNone);
  const RawClient::Chunk chunk = AskChunk(Command::kBlockStatus, 0, kHuge);
  ASSERT_EQ(chunk.header.type, ChunkType::kBlockStatusExt);
  ASSERT_EQ(chunk.payload.size(), 8u + 3 * 16);
  EXPECT_EQ(Load32(&chunk.payload[0]), 7u);
  EXPECT_EQ(Load32(&chunk.payload[4]), 3u);
  const uint64_t expected[] = {kWritten, 3, 4096, 0, kHuge - kWritten - 4096, 3};
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(Load64(&chunk.payload[8 + 8 * i]), expected[i]) << i;

  const RawClient::Chunk one = AskChunk(Command::kBlockStatus, kWritten, 512, kCommandFlagReqOne);
  ASSERT_EQ(one.payload.size(), 8u + 16);
  EXPECT_EQ(Load64(&one.payload[8]), 512u);
}

// "limit its replies to the metacontext id(s) in the client's request payload".
TEST_F(SessionExtendedTest, BlockStatusOfSomeContexts) {
  negotiated_.contexts = {{7, kBaseAllocation}, {8, kBaseAllocation}, {9, kBaseAllocation}};
  Start();
  const auto ask = [this](const std::vector<uint32_t>& ids) {
    const std::vector<uint8_t> payload = Query(8192, ids);
    EXPECT_TRUE(
        client_->Send({kCommandFlagPayloadLen, Command::kBlockStatus, 1, 4096, payload.size()}, payload));
    std::vector<uint32_t> answered;
    while (true) {
      const RawClient::Chunk chunk = client_->ReceiveChunk();
      EXPECT_EQ(chunk.header.type, ChunkType::kBlockStatusExt);
      EXPECT_EQ(chunk.header.offset, 4096u);
      EXPECT_EQ(Load64(&chunk.payload[8]), 8192u);
      answered.push_back(Load32(chunk.payload.data()));
      if (chunk.done()) return answered;
    }
  };
  EXPECT_EQ(ask({8}), std::vector<uint32_t>{8});
  EXPECT_EQ(ask({9, 7}), (std::vector<uint32_t>{7, 9}));
  EXPECT_EQ(ask({7, 8, 9}), (std::vector<uint32_t>{7, 8, 9}));
}

// "detects duplicate or unknown metacontext ids in the client's payload, the server MUST gracefully consume
// the client's payload before failing with NBD_EINVAL". "The payload form MUST occupy 8 + n*4 bytes".
TEST_F(SessionExtendedTest, BlockStatusPayloadsThatMakeNoSense) {
  negotiated_.contexts = {{7, kBaseAllocation}, {8, kBaseAllocation}};
  Start();
  EXPECT_EQ(AskQuery(0, Query(4096, {7, 7})), Error::kInval);
  EXPECT_EQ(AskQuery(0, Query(4096, {9})), Error::kInval);
  EXPECT_EQ(AskQuery(0, Query(4096, {7, 9})), Error::kInval);
  EXPECT_EQ(AskQuery(0, Query(4096, {7, 8, 7})), Error::kInval);
  EXPECT_EQ(AskQuery(0, Query(4096, {})), Error::kInval);
  EXPECT_EQ(AskQuery(0, Query(4096, std::vector<uint32_t>(100'000, 7))), Error::kInval);
  EXPECT_EQ(AskQuery(0, std::vector<uint8_t>(4)), Error::kInval);
  EXPECT_EQ(AskQuery(0, std::vector<uint8_t>(13)), Error::kInval);
  EXPECT_EQ(AskQuery(0, Query(0, {7})), Error::kInval);
  EXPECT_EQ(AskQuery(0, Query(kSize + 1, {7})), Error::kInval);
  EXPECT_EQ(AskQuery(kSize, Query(1, {7})), Error::kInval);
  EXPECT_EQ(AskQuery(0, Query(4096, {7}), kCommandFlagDf), Error::kInval);
  ExpectInStep();
  EXPECT_EQ(faulty_->count(FaultyDevice::kExtents), 0u);
}

// Without a context NBD_FLAG_BLOCK_STATUS_PAYLOAD is not there.
TEST_F(SessionExtendedTest, BlockStatusPayloadWithoutContexts) {
  negotiated_.contexts.clear();
  Start();
  EXPECT_EQ(AskQuery(0, Query(4096, {7})), Error::kInval);
  EXPECT_EQ(AskError(Command::kBlockStatus, 0, 4096), Error::kInval);
  ExpectInStep();
}

// ---- Errors.

TEST_F(SessionExtendedTest, ErrorsAreChunks) {
  Start();
  RawClient::Chunk chunk = AskChunk(Command::kRead, kSize - 1, 2);
  EXPECT_EQ(chunk.header.type, ChunkType::kErrorOffset);
  EXPECT_EQ(chunk.error(), Error::kInval);
  EXPECT_FALSE(chunk.message().empty());
  EXPECT_EQ(Load64(&chunk.payload[chunk.payload.size() - 8]), kSize);
  faulty_->Fail(FaultyDevice::kFlush, EIO, 1);
  EXPECT_EQ(AskError(Command::kFlush, 0, 0), Error::kIo);
  session_->Stop();
}

TEST_F(SessionExtendedTest, NeitherStyleOfHeadersIsTakenForTheOther) {
  Start();
  client_->SetStyle(ReplyStyle::kStructured);
  ASSERT_TRUE(client_->Send({0, Command::kFlush, 1, 0, 0}));
  ASSERT_TRUE(client_->Send({0, Command::kFlush, 1, 0, 0}));
  EXPECT_TRUE(client_->AtEnd());
  WaitForEnd();
  UseStructuredReplies(ReplyStyle::kStructured);
  Start();
  client_->SetStyle(ReplyStyle::kExtended);
  ASSERT_TRUE(client_->Send({0, Command::kFlush, 1, 0, 0}));
  EXPECT_TRUE(client_->AtEnd());
}

}  // namespace
}  // namespace berth::nbd
