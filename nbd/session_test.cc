// Every command and flag, with simple and with structured replies.
#include "nbd/session.h"

#include <algorithm>
#include <cerrno>
#include <map>
#include <mutex>

#include "gmock/gmock.h"
#include "nbd/session_fixture.h"
#include "nbd/zero_runs.h"

namespace berth::nbd {
namespace {

using Event = RecordingDevice::Event;
using Kind = RecordingDevice::Kind;
using Phase = RecordingDevice::Phase;

// Over a device whose operations complete at once, and over one whose never do.
class SessionDataTest : public SessionTest, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    SessionTest::SetUp();
    if (GetParam()) UseBareDevice();
  }
};
INSTANTIATE_TEST_SUITE_P(Inline, SessionDataTest, testing::Bool());

TEST_P(SessionDataTest, ReadsWhatWasWritten) {
  Start();
  const std::vector<uint8_t> data = Pattern(4096, 1);
  EXPECT_EQ(Write(8192, data), Error::kNone);
  EXPECT_EQ(Read(8192, 4096), data);
  EXPECT_EQ(Read(0, 100), std::vector<uint8_t>(100));
}

TEST_P(SessionDataTest, ServesEveryAlignmentAndSize) {
  Start();
  uint8_t seed = 0;
  for (const size_t size :
       {1u, 511u, 4097u, 16356u, 32767u, 32768u, 65537u, 300000u, 1u << 20, 8u << 20, 32u << 20}) {
    const std::vector<uint8_t> data = Pattern(size, ++seed);
    EXPECT_EQ(Write(777, data), Error::kNone) << size;
    EXPECT_EQ(Read(777, size), data) << size;
  }
}

TEST_P(SessionDataTest, WorksWithSmallSocketBuffers) {
  Start(4096);
  const std::vector<uint8_t> data = Pattern(1 << 20, 9);
  EXPECT_EQ(Write(0, data), Error::kNone);
  EXPECT_EQ(Read(0, data.size()), data);
}

TEST_P(SessionDataTest, AnswersManyRequestsOfOneSend) {
  Start();
  constexpr uint64_t kRequests = 3000;
  std::vector<uint8_t> message;
  for (uint64_t i = 0; i < kRequests; ++i) {
    std::vector<uint8_t> header(kRequestSize);
    EncodeRequest({0, Command::kWrite, i, i * 512, 512}, absl::MakeSpan(header));
    message.insert(message.end(), header.begin(), header.end());
    const std::vector<uint8_t> data = Pattern(512, static_cast<uint8_t>(i));
    message.insert(message.end(), data.begin(), data.end());
  }
  ASSERT_TRUE(client_->Send(message));
  std::vector<bool> answered(kRequests);
  for (uint64_t i = 0; i < kRequests; ++i) {
    const SimpleReply reply = client_->ReceiveSimple();
    ASSERT_LT(reply.cookie, kRequests);
    EXPECT_FALSE(answered[reply.cookie]) << "answered twice: " << reply.cookie;
    answered[reply.cookie] = true;
    EXPECT_EQ(reply.error, Error::kNone);
  }
  for (uint64_t i = 0; i < kRequests; ++i) {
    ASSERT_EQ(Read(i * 512, 512), Pattern(512, static_cast<uint8_t>(i))) << i;
  }
}

TEST_P(SessionDataTest, RequestsMayArriveByteByByte) {
  Start();
  const std::vector<uint8_t> data = Pattern(100, 3);
  std::vector<uint8_t> message(2 * kRequestSize);
  EncodeRequest({0, Command::kWrite, 1, 50, 100}, absl::MakeSpan(message).first(kRequestSize));
  EncodeRequest({0, Command::kRead, 2, 50, 100}, absl::MakeSpan(message).subspan(kRequestSize));
  message.insert(message.begin() + kRequestSize, data.begin(), data.end());
  for (size_t i = 0; i < message.size(); ++i) {
    if (i == kRequestSize + 100) {
      EXPECT_EQ(client_->ReceiveSimple().cookie, 1u);
    }
    ASSERT_TRUE(client_->Send(absl::MakeConstSpan(message).subspan(i, 1)));
    FinishTurn();
  }
  EXPECT_EQ(client_->ReceiveSimple().cookie, 2u);
  EXPECT_EQ(client_->Receive(100), data);
}

TEST_P(SessionDataTest, LargeWritesFollowEachOther) {
  Start();
  constexpr size_t kWrite = 100'000;
  std::vector<uint8_t> message;
  for (uint64_t i = 0; i < 40; ++i) {
    std::vector<uint8_t> header(kRequestSize);
    EncodeRequest({0, Command::kWrite, i, i * kWrite, kWrite}, absl::MakeSpan(header));
    message.insert(message.end(), header.begin(), header.end());
    const std::vector<uint8_t> data = Pattern(kWrite, static_cast<uint8_t>(i));
    message.insert(message.end(), data.begin(), data.end());
  }
  ASSERT_TRUE(client_->Send(message));
  for (int i = 0; i < 40; ++i) EXPECT_EQ(client_->ReceiveSimple().error, Error::kNone);
  for (uint64_t i = 0; i < 40; ++i) {
    ASSERT_EQ(Read(i * kWrite, kWrite), Pattern(kWrite, static_cast<uint8_t>(i))) << i;
  }
}

TEST_P(SessionDataTest, CancelledReceivesLoseNothing) {
  // The idle timer then fires in every turn, and cancels whatever is received.
  options_.idle_after = absl::ZeroDuration();
  Start();
  for (int i = 0; i < 300; ++i) {
    const std::vector<uint8_t> data = Pattern(20'000 + static_cast<size_t>(i) * 97, static_cast<uint8_t>(i));
    ASSERT_EQ(Write(static_cast<uint64_t>(i), data), Error::kNone);
    ASSERT_EQ(Read(static_cast<uint64_t>(i), data.size()), data);
  }
}

class SessionCommandTest : public SessionTest {
 protected:
  // The one operation that reached the device since the last call.
  Event TakeOnly(Kind kind) {
    const std::vector<Event> events = recording_->TakeEvents();
    EXPECT_EQ(events.size(), 2u);
    if (events.empty()) return {};
    EXPECT_EQ(events[0].kind, kind);
    return events[0];
  }
};

TEST_F(SessionCommandTest, FuaReachesTheDevice) {
  Start();
  EXPECT_EQ(Write(0, Pattern(512, 1), kCommandFlagFua), Error::kNone);
  EXPECT_TRUE(TakeOnly(Kind::kWrite).fua);
  EXPECT_EQ(Write(0, Pattern(512, 1)), Error::kNone);
  EXPECT_FALSE(TakeOnly(Kind::kWrite).fua);
  EXPECT_EQ(Ask(Command::kWriteZeroes, 0, 512, kCommandFlagFua), Error::kNone);
  EXPECT_TRUE(TakeOnly(Kind::kZero).fua);
  EXPECT_EQ(Ask(Command::kFlush, 0, 0, kCommandFlagFua), Error::kNone);
  TakeOnly(Kind::kFlush);
}

TEST_F(SessionCommandTest, AFlushStartsAfterTheWritesThatWereAnswered) {
  Start();
  EXPECT_EQ(Write(0, Pattern(512, 1)), Error::kNone);
  EXPECT_EQ(Ask(Command::kFlush, 0, 0), Error::kNone);
  const std::vector<Event> events = recording_->TakeEvents();
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[1].kind, Kind::kWrite);
  EXPECT_EQ(events[1].phase, Phase::kEnd);
  EXPECT_EQ(events[2].kind, Kind::kFlush);
  EXPECT_EQ(events[2].phase, Phase::kStart);
}

TEST_F(SessionCommandTest, TrimWithFuaDiscardsAndThenFlushes) {
  Start();
  EXPECT_EQ(Ask(Command::kTrim, 4096, 8192, kCommandFlagFua), Error::kNone);
  const std::vector<Event> events = recording_->TakeEvents();
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].kind, Kind::kDiscard);
  EXPECT_EQ(events[0].offset, 4096u);
  EXPECT_EQ(events[0].length, 8192u);
  EXPECT_EQ(events[1].phase, Phase::kEnd);
  EXPECT_EQ(events[2].kind, Kind::kFlush);
  EXPECT_EQ(events[3].phase, Phase::kEnd);
  faulty_->Fail(FaultyDevice::kDiscard, EIO, 1);
  EXPECT_EQ(Ask(Command::kTrim, 4096, 8192, kCommandFlagFua), Error::kIo);
  EXPECT_EQ(recording_->TakeEvents().size(), 2u) << "flushed after a discard that failed";
}

TEST_F(SessionCommandTest, EffectsReachFourGibibytes) {
  UseDevice(uint64_t{8} << 30);
  Start();
  EXPECT_EQ(Ask(Command::kTrim, 512, 0xffffffff), Error::kNone);
  EXPECT_EQ(TakeOnly(Kind::kDiscard).length, 0xffffffffu);
  EXPECT_EQ(Ask(Command::kWriteZeroes, 512, 0xffffffff), Error::kNone);
  EXPECT_EQ(TakeOnly(Kind::kZero).length, 0xffffffffu);
  EXPECT_EQ(Ask(Command::kCache, 512, 0xffffffff), Error::kNone);
  EXPECT_EQ(TakeOnly(Kind::kPrefetch).length, 0xffffffffu);
}

TEST_F(SessionCommandTest, WriteZeroesHandsItsFlagsOn) {
  Start();
  EXPECT_EQ(Ask(Command::kWriteZeroes, 0, 512), Error::kNone);
  Event event = TakeOnly(Kind::kZero);
  EXPECT_FALSE(event.no_unmap || event.fast_only || event.fua);
  EXPECT_EQ(Ask(Command::kWriteZeroes, 0, 512, kCommandFlagNoHole), Error::kNone);
  EXPECT_TRUE(TakeOnly(Kind::kZero).no_unmap);
  Ask(Command::kWriteZeroes, 0, 512, kCommandFlagFastZero);
  EXPECT_TRUE(TakeOnly(Kind::kZero).fast_only);
}

TEST_F(SessionCommandTest, OnlyAFastZeroIsNotSupported) {
  Start();
  faulty_->Fail(FaultyDevice::kZero, ENOTSUP);
  EXPECT_EQ(Ask(Command::kWriteZeroes, 0, 512, kCommandFlagFastZero), Error::kNotSup);
  EXPECT_EQ(Ask(Command::kWriteZeroes, 0, 512), Error::kInval);
}

TEST_F(SessionCommandTest, ErrorsOfTheDeviceReachTheClient) {
  Start();
  const std::map<int, Error> errors = {
      {EIO, Error::kIo},       {ENOSPC, Error::kNoSpc}, {ENOMEM, Error::kNoMem},      {EPERM, Error::kPerm},
      {EDQUOT, Error::kNoSpc}, {ETIMEDOUT, Error::kIo}, {ESHUTDOWN, Error::kShutdown}};
  const std::vector<uint8_t> data = Pattern(4096, 1);
  for (const auto& [from, to] : errors) {
    faulty_->Fail(FaultyDevice::kRead, from, 1);
    EXPECT_EQ(Ask(Command::kRead, 0, 4096), to) << from;
    faulty_->Fail(FaultyDevice::kWrite, from, 1);
    EXPECT_EQ(Write(0, data), to) << from;
    faulty_->Fail(FaultyDevice::kFlush, from, 1);
    EXPECT_EQ(Ask(Command::kFlush, 0, 0), to) << from;
    faulty_->Fail(FaultyDevice::kDiscard, from, 1);
    EXPECT_EQ(Ask(Command::kTrim, 0, 4096), to) << from;
    faulty_->Fail(FaultyDevice::kPrefetch, from, 1);
    EXPECT_EQ(Ask(Command::kCache, 0, 4096), to) << from;
  }
  EXPECT_EQ(Read(0, 4096), std::vector<uint8_t>(4096)) << "an error ended the session";
}

TEST_F(SessionCommandTest, RefusedRequestsDoNotReachTheDevice) {
  Start();
  EXPECT_EQ(Ask(Command::kRead, kSize, 1), Error::kInval);
  EXPECT_EQ(Ask(Command::kRead, 0, kMaxPayload + 1), Error::kInval);
  EXPECT_EQ(Ask(Command::kTrim, kSize, 1), Error::kInval);
  EXPECT_EQ(Ask(Command::kWriteZeroes, kSize, 1), Error::kNoSpc);
  EXPECT_EQ(Ask(Command::kRead, 0, 512, kCommandFlagDf), Error::kInval);
  EXPECT_EQ(Ask(Command::kBlockStatus, 0, 512), Error::kInval);
  EXPECT_EQ(Ask(static_cast<Command>(99), 0, 512), Error::kInval);
  EXPECT_TRUE(recording_->TakeEvents().empty());
}

TEST_F(SessionCommandTest, PayloadsOfRefusedWritesAreReadPast) {
  Start();
  for (const size_t size : {1u, 512u, 20'000u, 300'000u}) {
    EXPECT_EQ(Write(kSize, Pattern(size, 1)), Error::kNoSpc) << size;
    EXPECT_EQ(Write(0, Pattern(size, 1), kCommandFlagDf), Error::kInval) << size;
  }
  // More than may be written at once, and still no attack.
  EXPECT_EQ(Write(0, Pattern(kMaxPayload + 1, 1)), Error::kInval);
  EXPECT_TRUE(recording_->TakeEvents().empty());
  EXPECT_EQ(Read(0, 512), std::vector<uint8_t>(512));
}

TEST_F(SessionCommandTest, ReadOnlyExportsRefuseWrites) {
  export_->read_only = true;
  Start();
  EXPECT_EQ(Write(0, Pattern(512, 1)), Error::kPerm);
  EXPECT_EQ(Write(0, Pattern(100'000, 1)), Error::kPerm);
  EXPECT_EQ(Ask(Command::kTrim, 0, 512), Error::kPerm);
  EXPECT_EQ(Ask(Command::kWriteZeroes, 0, 512), Error::kPerm);
  EXPECT_TRUE(recording_->TakeEvents().empty());
  EXPECT_EQ(Read(0, 512), std::vector<uint8_t>(512));
  EXPECT_EQ(Ask(Command::kFlush, 0, 0), Error::kNone);
}

TEST_F(SessionCommandTest, NoBytesAreSuccessWithoutEffect) {
  Start();
  EXPECT_TRUE(Read(0, 0).empty());
  EXPECT_EQ(Write(kSize, {}), Error::kNone);
  EXPECT_EQ(Ask(Command::kTrim, 0, 0), Error::kNone);
  EXPECT_EQ(Ask(Command::kWriteZeroes, 0, 0), Error::kNone);
  EXPECT_TRUE(recording_->TakeEvents().empty());
}

TEST_F(SessionCommandTest, AGrownDeviceIsServedToItsNewEnd) {
  Start();
  EXPECT_EQ(Ask(Command::kRead, kSize, 512), Error::kInval);
  ASSERT_TRUE(memory_->Resize(2 * kSize).ok());
  EXPECT_EQ(Read(kSize, 512), std::vector<uint8_t>(512));
  ASSERT_TRUE(memory_->Resize(4096).ok());
  EXPECT_EQ(Ask(Command::kRead, kSize, 512), Error::kInval);
}

class SessionStructuredTest : public SessionTest {
 protected:
  void SetUp() override {
    SessionTest::SetUp();
    UseStructuredReplies();
  }
};

TEST_F(SessionStructuredTest, AReadIsOneChunkOfData) {
  Start();
  const std::vector<uint8_t> data = Pattern(1000, 1);
  EXPECT_EQ(Write(5000, data), Error::kNone);
  for (const uint16_t flags : {uint16_t{0}, kCommandFlagDf}) {
    const RawClient::Chunk chunk = AskChunk(Command::kRead, 5000, 1000, flags);
    EXPECT_EQ(chunk.header.type, ChunkType::kOffsetData);
    ASSERT_EQ(chunk.payload.size(), 1008u);
    EXPECT_EQ(Load64(chunk.payload.data()), 5000u);
    EXPECT_EQ(std::vector<uint8_t>(chunk.payload.begin() + 8, chunk.payload.end()), data);
  }
}

TEST_F(SessionStructuredTest, TheLargestReadIsOneChunk) {
  Start();
  EXPECT_EQ(AskChunk(Command::kRead, 0, kMaxPayload, kCommandFlagDf).header.length, kMaxPayload + 8);
}

TEST_F(SessionStructuredTest, HolesAreChunksOfTheirOwn) {
  UseBareDevice();
  Start();
  constexpr uint64_t kData = 3 * kZeroGranule;
  const std::vector<uint8_t> data = Pattern(5000, 1);
  EXPECT_EQ(Write(kData, data), Error::kNone);
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

  // "If this flag is set, the server MUST send at most one content chunk", of data.
  const RawClient::Chunk whole = AskChunk(Command::kRead, 4096, 1 << 20, kCommandFlagDf);
  EXPECT_EQ(whole.header.type, ChunkType::kOffsetData);
  EXPECT_EQ(whole.payload.size(), 8u + (1 << 20));
}

// Parts of a reply hold its buffer; the connection counts one request until the last has left.
TEST_F(SessionStructuredTest, RepliesInManyPartsToASlowReader) {
  UseBareDevice();
  options_.max_bytes_in_flight = 1 << 20;
  options_.max_requests_in_flight = 4;
  Start(/*socket_buffer=*/4096);
  std::vector<uint8_t> expected(2 << 20);
  for (size_t at = 0; at < expected.size(); at += 2 * kZeroGranule) {
    const std::vector<uint8_t> data = Pattern(kZeroGranule, static_cast<uint8_t>(at >> 16));
    ASSERT_EQ(Write(at, data), Error::kNone);
    std::copy(data.begin(), data.end(), expected.begin() + static_cast<ptrdiff_t>(at));
  }
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(client_->Send({0, Command::kRead, i, 0, expected.size()}));
  std::map<uint64_t, std::vector<uint8_t>> replies;
  for (int done = 0; done < 8;) {
    const RawClient::Chunk chunk = client_->ReceiveChunk();
    std::vector<uint8_t>& content = replies[chunk.header.cookie];
    content.resize(expected.size());
    if (chunk.header.type == ChunkType::kOffsetData) {
      std::copy(chunk.payload.begin() + 8, chunk.payload.end(),
                content.begin() + static_cast<ptrdiff_t>(Load64(chunk.payload.data())));
    }
    if (chunk.done()) ++done;
  }
  ASSERT_EQ(replies.size(), 8u);
  for (const auto& [cookie, content] : replies) EXPECT_TRUE(content == expected) << cookie;
}

TEST_F(SessionStructuredTest, AReadOfNoBytesIsAnEmptyChunk) {
  Start();
  EXPECT_EQ(AskChunk(Command::kRead, 0, 0).header.type, ChunkType::kNone);
}

TEST_F(SessionStructuredTest, ErrorsAreChunks) {
  Start();
  RawClient::Chunk chunk = AskChunk(Command::kRead, kSize - 1, 2);
  EXPECT_EQ(chunk.header.type, ChunkType::kErrorOffset);
  EXPECT_EQ(chunk.error(), Error::kInval);
  EXPECT_FALSE(chunk.message().empty());
  EXPECT_EQ(Load64(&chunk.payload[chunk.payload.size() - 8]), kSize) << "where the export ends";

  chunk = AskChunk(Command::kRead, 0, kMaxPayload + 1);
  EXPECT_EQ(chunk.header.type, ChunkType::kError);
  EXPECT_EQ(chunk.error(), Error::kOverflow);

  faulty_->Fail(FaultyDevice::kRead, EIO, 1);
  chunk = AskChunk(Command::kRead, 0, 512);
  EXPECT_EQ(chunk.header.type, ChunkType::kError);
  EXPECT_EQ(chunk.error(), Error::kIo);
  EXPECT_EQ(chunk.message(), "Input/output error");
}

TEST_F(SessionStructuredTest, BlockStatusTellsDataFromHoles) {
  Start();
  EXPECT_EQ(Write(8192, Pattern(4096, 1)), Error::kNone);
  const RawClient::Chunk chunk = AskChunk(Command::kBlockStatus, 4096, 16384);
  ASSERT_EQ(chunk.header.type, ChunkType::kBlockStatus);
  ASSERT_EQ(chunk.payload.size(), 4u + 3 * 8);
  const uint32_t expected[] = {7, 4096, kStateHole | kStateZero, 4096, 0, 8192, kStateHole | kStateZero};
  for (size_t i = 0; i < 7; ++i) EXPECT_EQ(Load32(&chunk.payload[4 * i]), expected[i]) << i;
}

TEST_F(SessionStructuredTest, BlockStatusOfOneExtent) {
  Start();
  EXPECT_EQ(Write(8192, Pattern(4096, 1)), Error::kNone);
  const RawClient::Chunk chunk = AskChunk(Command::kBlockStatus, 4096, 16384, kCommandFlagReqOne);
  ASSERT_EQ(chunk.payload.size(), 12u);
  EXPECT_EQ(Load32(&chunk.payload[4]), 4096u);
}

TEST_F(SessionStructuredTest, BlockStatusAnswersEveryContext) {
  negotiated_.contexts = {{7, kBaseAllocation}, {8, kBaseAllocation}};
  Start();
  ASSERT_TRUE(client_->Send({0, Command::kBlockStatus, 1, 0, 4096}));
  const RawClient::Chunk first = client_->ReceiveChunk();
  EXPECT_FALSE(first.done());
  EXPECT_EQ(Load32(first.payload.data()), 7u);
  const RawClient::Chunk second = client_->ReceiveChunk();
  EXPECT_TRUE(second.done());
  EXPECT_EQ(Load32(second.payload.data()), 8u);
}

TEST_F(SessionStructuredTest, BlockStatusIsBounded) {
  UseDevice(uint64_t{4} << 30);
  Start();
  // A data page between any two holes: twice as many extents as pages are written.
  constexpr uint64_t kPages = 20'000;
  for (uint64_t i = 0; i < kPages; ++i) ASSERT_EQ(Write(i * 8192, Pattern(512, 1)), Error::kNone);
  const RawClient::Chunk chunk = AskChunk(Command::kBlockStatus, 0, 2 * kPages * 4096);
  EXPECT_EQ(chunk.payload.size(), 4u + 8 * kMaxExtents);
}

TEST_F(SessionStructuredTest, NoMoreBlockStatusRunsThanMemoryMay) {
  options_.max_bytes_in_flight = 1 << 20;
  Start();
  faulty_->Hold(FaultyDevice::kExtents);
  constexpr uint64_t kQueries = 50;
  std::vector<uint8_t> message(kQueries * kRequestSize);
  for (uint64_t i = 0; i < kQueries; ++i) {
    EncodeRequest({0, Command::kBlockStatus, i, 0, 4096},
                  absl::MakeSpan(message).subspan(i * kRequestSize, kRequestSize));
  }
  ASSERT_TRUE(client_->Send(message));
  ASSERT_TRUE(faulty_->WaitUntilHeld(FaultyDevice::kExtents, 3));
  FinishTurn();
  EXPECT_LE(faulty_->count(FaultyDevice::kExtents), (1 << 20) / (kMaxExtents * sizeof(Extent)));
  faulty_->Release(FaultyDevice::kExtents);
  for (uint64_t i = 0; i < kQueries; ++i) EXPECT_TRUE(client_->ReceiveChunk().done());
}

TEST_F(SessionStructuredTest, BlockStatusErrors) {
  Start();
  EXPECT_EQ(AskChunk(Command::kBlockStatus, 0, 0).error(), Error::kInval);
  EXPECT_EQ(AskChunk(Command::kBlockStatus, kSize, 1).error(), Error::kInval);
  faulty_->Fail(FaultyDevice::kExtents, EIO, 1);
  EXPECT_EQ(AskChunk(Command::kBlockStatus, 0, 512).error(), Error::kIo);
}

class CountingObserver final : public RequestObserver {
 public:
  void Completed(Operation operation, uint64_t bytes, absl::Duration latency, IoResult result) override {
    EXPECT_GE(latency, absl::ZeroDuration());
    EXPECT_LT(latency, absl::Minutes(10));
    const std::lock_guard<std::mutex> lock(mutex_);
    events_.push_back({static_cast<int>(operation), bytes, result.error});
  }
  using Seen = std::tuple<int, uint64_t, int>;
  std::vector<Seen> Take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(events_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<Seen> events_;
};

TEST_P(SessionDataTest, TheObserverHasHeardWhenTheClientHas) {
  auto observer = std::make_shared<CountingObserver>();
  export_->observer = observer;
  Start();
  Write(0, Pattern(4096, 1));
  Read(0, 512);
  Ask(Command::kFlush, 0, 0);
  Ask(Command::kRead, kSize, 512);
  Ask(static_cast<Command>(77), 0, 0);
  using Seen = CountingObserver::Seen;
  EXPECT_THAT(observer->Take(), testing::ElementsAre(Seen(static_cast<int>(Operation::kWrite), 4096, 0),
                                                     Seen(static_cast<int>(Operation::kRead), 512, 0),
                                                     Seen(static_cast<int>(Operation::kFlush), 0, 0),
                                                     Seen(static_cast<int>(Operation::kRead), 512, EINVAL)));
}

}  // namespace
}  // namespace berth::nbd
