// The bytes here were written by hand from proto.md.
#include "nbd/wire.h"

#include <cerrno>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

using testing::ElementsAre;

std::vector<uint8_t> Buffer(size_t size) { return std::vector<uint8_t>(size, 0xaa); }

// "Newstyle negotiation".
TEST(WireTest, Greeting) {
  const std::vector<uint8_t> bytes = {'N', 'B', 'D', 'M', 'A', 'G', 'I', 'C', 'I',
                                      'H', 'A', 'V', 'E', 'O', 'P', 'T', 0,   3};
  std::vector<uint8_t> out = Buffer(kGreetingSize);
  EncodeGreeting({kFlagFixedNewstyle | kFlagNoZeroes}, absl::MakeSpan(out));
  EXPECT_EQ(out, bytes);
  Greeting greeting;
  ASSERT_TRUE(DecodeGreeting(bytes, &greeting));
  EXPECT_EQ(greeting.handshake_flags, 3);
  for (const size_t at : {0u, 7u, 8u, 15u}) {
    std::vector<uint8_t> wrong = bytes;
    wrong[at] ^= 1;
    EXPECT_FALSE(DecodeGreeting(wrong, &greeting)) << at;
  }
}

// "Newstyle negotiation".
TEST(WireTest, OptionHeader) {
  const std::vector<uint8_t> bytes = {'I', 'H', 'A', 'V', 'E',  'O',  'P',  'T',
                                      0,   0,   0,   7,   0x01, 0x02, 0x03, 0x04};
  std::vector<uint8_t> out = Buffer(kOptionHeaderSize);
  EncodeOptionHeader({Option::kGo, 0x01020304}, absl::MakeSpan(out));
  EXPECT_EQ(out, bytes);
  OptionHeader header;
  ASSERT_TRUE(DecodeOptionHeader(bytes, &header));
  EXPECT_EQ(header.option, Option::kGo);
  EXPECT_EQ(header.length, 0x01020304u);
  out[3] = 'v';
  EXPECT_FALSE(DecodeOptionHeader(out, &header));
}

// "Fixed newstyle negotiation".
TEST(WireTest, OptionReplyHeader) {
  const std::vector<uint8_t> bytes = {0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9, 0, 0,
                                      0,    6,    0x80, 0,    0,    6,    0,    0,    1, 0};
  std::vector<uint8_t> out = Buffer(kOptionReplyHeaderSize);
  EncodeOptionReplyHeader({Option::kInfo, OptionReply::kErrUnknown, 256}, absl::MakeSpan(out));
  EXPECT_EQ(out, bytes);
  OptionReplyHeader header;
  ASSERT_TRUE(DecodeOptionReplyHeader(bytes, &header));
  EXPECT_EQ(header.option, Option::kInfo);
  EXPECT_EQ(header.type, OptionReply::kErrUnknown);
  EXPECT_EQ(header.length, 256u);
  out[7] = 0xa8;
  EXPECT_FALSE(DecodeOptionReplyHeader(out, &header));
}

// "Option reply types", NBD_REP_INFO.
TEST(WireTest, InformationPayloads) {
  std::vector<uint8_t> out = Buffer(kInfoExportSize);
  EncodeInfoExport({0x0102030405060708, 0x0a0b}, absl::MakeSpan(out));
  EXPECT_THAT(out, ElementsAre(0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x0a, 0x0b));
  out = Buffer(kInfoBlockSizeSize);
  EncodeInfoBlockSize({1, 4096, 0x02000000}, absl::MakeSpan(out));
  EXPECT_THAT(out, ElementsAre(0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0));
}

// "Request message".
TEST(WireTest, Request) {
  const std::vector<uint8_t> bytes = {0x25, 0x60, 0x95, 0x13, 0x00, 0x12, 0x00, 0x06, 0xde, 0xad,
                                      0xbe, 0xef, 0x00, 0x01, 0x02, 0x03, 0x11, 0x22, 0x33, 0x44,
                                      0x55, 0x66, 0x77, 0x88, 0xff, 0xff, 0xff, 0xfe};
  std::vector<uint8_t> out = Buffer(kRequestSize);
  EncodeRequest({kCommandFlagFastZero | kCommandFlagNoHole, Command::kWriteZeroes, 0xdeadbeef00010203,
                 0x1122334455667788, 0xfffffffe},
                absl::MakeSpan(out));
  EXPECT_EQ(out, bytes);
  Request request;
  ASSERT_TRUE(DecodeRequest(bytes, &request));
  EXPECT_EQ(request.flags, 0x12);
  EXPECT_EQ(request.command, Command::kWriteZeroes);
  EXPECT_EQ(request.cookie, 0xdeadbeef00010203);
  EXPECT_EQ(request.offset, 0x1122334455667788u);
  EXPECT_EQ(request.length, 0xfffffffeu);
  out[0] = 0x26;
  EXPECT_FALSE(DecodeRequest(out, &request));
}

// "Simple reply message".
TEST(WireTest, SimpleReply) {
  const std::vector<uint8_t> bytes = {0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 8, 7, 6, 5, 4, 3, 2, 1};
  std::vector<uint8_t> out = Buffer(kSimpleReplySize);
  EncodeSimpleReply({Error::kNoSpc, 0x0807060504030201}, absl::MakeSpan(out));
  EXPECT_EQ(out, bytes);
  SimpleReply reply;
  ASSERT_TRUE(DecodeSimpleReply(bytes, &reply));
  EXPECT_EQ(reply.error, Error::kNoSpc);
  EXPECT_EQ(reply.cookie, 0x0807060504030201u);
  out[0] = 0;
  EXPECT_FALSE(DecodeSimpleReply(out, &reply));
}

// "Structured reply chunk message".
TEST(WireTest, ChunkHeader) {
  const std::vector<uint8_t> bytes = {0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0};
  std::vector<uint8_t> out = Buffer(kChunkHeaderSize);
  EncodeChunkHeader({kReplyFlagDone, ChunkType::kNone, 0x0807060504030201, 0}, absl::MakeSpan(out));
  EXPECT_EQ(out, bytes);
  ChunkHeader header;
  ASSERT_TRUE(DecodeChunkHeader(bytes, &header));
  EXPECT_EQ(header.flags, kReplyFlagDone);
  EXPECT_EQ(header.type, ChunkType::kNone);
  EXPECT_EQ(header.cookie, 0x0807060504030201u);
  EXPECT_EQ(header.length, 0u);
  out[1] = 0;
  EXPECT_FALSE(DecodeChunkHeader(out, &header));
}

// "Structured reply types".
TEST(WireTest, ContentChunks) {
  std::vector<uint8_t> out = Buffer(kOffsetDataSize);
  EncodeOffsetData(kReplyFlagDone, 1, 0x0102030405060708, 4096, absl::MakeSpan(out));
  EXPECT_THAT(out, ElementsAre(0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0x10, 8,  //
                               1, 2, 3, 4, 5, 6, 7, 8));
  out = Buffer(kOffsetHoleSize);
  EncodeOffsetHole(0, 1, 0x0102030405060708, 4096, absl::MakeSpan(out));
  EXPECT_THAT(out, ElementsAre(0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 12,  //
                               1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x10, 0));
}

// "Structured reply types", error chunks.
TEST(WireTest, ErrorChunks) {
  std::vector<uint8_t> out = Buffer(kMaxErrorChunkSize);
  size_t size = EncodeErrorChunk(1, Error::kInval, "no", absl::MakeSpan(out));
  EXPECT_THAT(absl::MakeSpan(out).first(size),
              ElementsAre(0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8,  //
                          0, 0, 0, 22, 0, 2, 'n', 'o'));
  size = EncodeErrorOffsetChunk(1, Error::kIo, "", 0x0102030405060708, absl::MakeSpan(out));
  EXPECT_THAT(absl::MakeSpan(out).first(size),
              ElementsAre(0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 14,  //
                          0, 0, 0, 5, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8));
}

TEST(WireTest, LongErrorMessagesAreCut) {
  std::vector<uint8_t> out = Buffer(kMaxErrorChunkSize);
  const std::string message(10'000, 'x');
  EXPECT_EQ(EncodeErrorOffsetChunk(1, Error::kIo, message, 2, absl::MakeSpan(out)), kMaxErrorChunkSize);
  ChunkHeader header;
  ASSERT_TRUE(DecodeChunkHeader(out, &header));
  EXPECT_EQ(header.length, kMaxErrorChunkSize - kChunkHeaderSize);
  EXPECT_EQ(Load16(&out[24]), kMaxErrorMessage);
  EXPECT_EQ(Load64(&out[out.size() - 8]), 2u);
}

// "Structured reply types", NBD_REPLY_TYPE_BLOCK_STATUS.
TEST(WireTest, BlockStatus) {
  std::vector<uint8_t> out = Buffer(kBlockStatusSize + 2 * kExtentDescriptorSize);
  const absl::Span<uint8_t> span = absl::MakeSpan(out);
  EncodeBlockStatus(kReplyFlagDone, 1, 0x01020304, 2, span);
  EncodeExtentDescriptor({4096, 0}, span.subspan(kBlockStatusSize));
  EncodeExtentDescriptor({0x00010000, kStateHole | kStateZero},
                         span.subspan(kBlockStatusSize + kExtentDescriptorSize));
  EXPECT_THAT(out, ElementsAre(0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 20,  //
                               1, 2, 3, 4, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3));
}

// "Error values".
TEST(WireTest, ErrnoValuesBecomeErrorsOfTheProtocol) {
  EXPECT_EQ(ErrorFromErrno(0), Error::kNone);
  EXPECT_EQ(ErrorFromErrno(EPERM), Error::kPerm);
  EXPECT_EQ(ErrorFromErrno(EROFS), Error::kPerm);
  EXPECT_EQ(ErrorFromErrno(EIO), Error::kIo);
  EXPECT_EQ(ErrorFromErrno(ENOMEM), Error::kNoMem);
  EXPECT_EQ(ErrorFromErrno(EINVAL), Error::kInval);
  EXPECT_EQ(ErrorFromErrno(ENOSPC), Error::kNoSpc);
  EXPECT_EQ(ErrorFromErrno(EDQUOT), Error::kNoSpc);
  EXPECT_EQ(ErrorFromErrno(EFBIG), Error::kNoSpc);
  EXPECT_EQ(ErrorFromErrno(EOVERFLOW), Error::kOverflow);
  EXPECT_EQ(ErrorFromErrno(ESHUTDOWN), Error::kShutdown);
  EXPECT_EQ(ErrorFromErrno(EBADF), Error::kIo);
  EXPECT_EQ(ErrorFromErrno(-1), Error::kIo);
  EXPECT_EQ(ErrorFromErrno(ENOTSUP, /*fast_zero=*/true), Error::kNotSup);
  EXPECT_EQ(ErrorFromErrno(ENOTSUP, /*fast_zero=*/false), Error::kInval);
}

}  // namespace
}  // namespace berth::nbd
