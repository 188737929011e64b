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
  InfoExport info;
  DecodeInfoExport(out, &info);
  EXPECT_EQ(info.size, 0x0102030405060708u);
  EXPECT_EQ(info.transmission_flags, 0x0a0b);
  out = Buffer(kInfoBlockSizeSize);
  EncodeInfoBlockSize({1, 4096, 0x02000000}, absl::MakeSpan(out));
  EXPECT_THAT(out, ElementsAre(0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0));
  InfoBlockSize block_size;
  DecodeInfoBlockSize(out, &block_size);
  EXPECT_EQ(block_size.minimum, 1u);
  EXPECT_EQ(block_size.preferred, 4096u);
  EXPECT_EQ(block_size.maximum_payload, 0x02000000u);
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

// "Request message" of the branch extension-ext-header.
TEST(WireTest, ExtendedRequest) {
  const std::vector<uint8_t> bytes = {0x21, 0xe4, 0x1c, 0x71, 0x00, 0x20, 0x00, 0x07, 0xde, 0xad, 0xbe,
                                      0xef, 0x00, 0x01, 0x02, 0x03, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66,
                                      0x77, 0x88, 0x01, 0x02, 0x03, 0x04, 0xff, 0xff, 0xff, 0xfe};
  ASSERT_EQ(bytes.size(), RequestSize(ReplyStyle::kExtended));
  std::vector<uint8_t> out = Buffer(kExtendedRequestSize);
  EncodeExtendedRequest({kCommandFlagPayloadLen, Command::kBlockStatus, 0xdeadbeef00010203,
                         0x1122334455667788, 0x01020304fffffffe},
                        absl::MakeSpan(out));
  EXPECT_EQ(out, bytes);
  Request request;
  ASSERT_TRUE(DecodeExtendedRequest(bytes, &request));
  EXPECT_EQ(request.flags, kCommandFlagPayloadLen);
  EXPECT_EQ(request.command, Command::kBlockStatus);
  EXPECT_EQ(request.cookie, 0xdeadbeef00010203);
  EXPECT_EQ(request.offset, 0x1122334455667788u);
  EXPECT_EQ(request.length, 0x01020304fffffffeu);
  // Neither form is taken for the other.
  EXPECT_FALSE(DecodeRequest(bytes, &request));
  EncodeRequest({}, absl::MakeSpan(out));
  EXPECT_FALSE(DecodeExtendedRequest(out, &request));
}

// "Structured reply chunk message".
TEST(WireTest, ChunkHeader) {
  const std::vector<uint8_t> bytes = {0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 5};
  std::vector<uint8_t> out = Buffer(kChunkHeaderSize);
  const ChunkHeader sent = {kReplyFlagDone, ChunkType::kNone, 0x0807060504030201, 5, 77};
  EncodeChunkHeader(ReplyStyle::kStructured, sent, absl::MakeSpan(out));
  EXPECT_EQ(out, bytes);
  ChunkHeader header;
  ASSERT_TRUE(DecodeChunkHeader(ReplyStyle::kStructured, bytes, &header));
  EXPECT_EQ(header.flags, kReplyFlagDone);
  EXPECT_EQ(header.type, ChunkType::kNone);
  EXPECT_EQ(header.cookie, 0x0807060504030201u);
  EXPECT_EQ(header.length, 5u);
  EXPECT_EQ(header.offset, 0u);
  out[1] = 0;
  EXPECT_FALSE(DecodeChunkHeader(ReplyStyle::kStructured, out, &header));
}

// "Extended reply chunk message".
TEST(WireTest, ExtendedChunkHeader) {
  const std::vector<uint8_t> bytes = {0x6e, 0x8a, 0x27, 0x8c, 0,    1,    0x80, 2,    8,    7,    6,
                                      5,    4,    3,    2,    1,    0x11, 0x12, 0x13, 0x14, 0x15, 0x16,
                                      0x17, 0x18, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28};
  ASSERT_EQ(bytes.size(), ChunkHeaderSize(ReplyStyle::kExtended));
  std::vector<uint8_t> out = Buffer(kExtendedChunkHeaderSize);
  EncodeChunkHeader(
      ReplyStyle::kExtended,
      {kReplyFlagDone, ChunkType::kErrorOffset, 0x0807060504030201, 0x2122232425262728, 0x1112131415161718},
      absl::MakeSpan(out));
  EXPECT_EQ(out, bytes);
  ChunkHeader header;
  ASSERT_TRUE(DecodeChunkHeader(ReplyStyle::kExtended, bytes, &header));
  EXPECT_EQ(header.flags, kReplyFlagDone);
  EXPECT_EQ(header.type, ChunkType::kErrorOffset);
  EXPECT_EQ(header.cookie, 0x0807060504030201u);
  EXPECT_EQ(header.offset, 0x1112131415161718u);
  EXPECT_EQ(header.length, 0x2122232425262728u);
  out[0] = 0x66;
  EXPECT_FALSE(DecodeChunkHeader(ReplyStyle::kExtended, out, &header));
}

constexpr ChunkedReply kStructured = {ReplyStyle::kStructured, 1, 2};
constexpr ChunkedReply kExtended = {ReplyStyle::kExtended, 1, 2};

// What `encode` wrote, as a vector.
template <typename Encode>
std::vector<uint8_t> Encoded(Encode encode) {
  std::vector<uint8_t> out = Buffer(kMaxErrorChunkSize);
  out.resize(encode(absl::MakeSpan(out)));
  return out;
}

// A header as "Structured reply chunk message" and "Extended reply chunk message" draw it, and a payload.
std::vector<uint8_t> StructuredChunk(uint8_t done, uint16_t type, const std::vector<uint8_t>& payload,
                                     size_t more = 0) {
  std::vector<uint8_t> bytes = {0x66,
                                0x8e,
                                0x33,
                                0xef,
                                0,
                                done,
                                static_cast<uint8_t>(type >> 8),
                                static_cast<uint8_t>(type),
                                0,
                                0,
                                0,
                                0,
                                0,
                                0,
                                0,
                                1,
                                0,
                                0};
  bytes.push_back(static_cast<uint8_t>((payload.size() + more) >> 8));
  bytes.push_back(static_cast<uint8_t>(payload.size() + more));
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return bytes;
}
std::vector<uint8_t> ExtendedChunk(uint8_t done, uint16_t type, const std::vector<uint8_t>& payload,
                                   size_t more = 0) {
  std::vector<uint8_t> bytes = {0x6e,
                                0x8a,
                                0x27,
                                0x8c,
                                0,
                                done,
                                static_cast<uint8_t>(type >> 8),
                                static_cast<uint8_t>(type),
                                0,
                                0,
                                0,
                                0,
                                0,
                                0,
                                0,
                                1,
                                0,
                                0,
                                0,
                                0,
                                0,
                                0,
                                0,
                                2,
                                0,
                                0,
                                0,
                                0,
                                0,
                                0};
  bytes.push_back(static_cast<uint8_t>((payload.size() + more) >> 8));
  bytes.push_back(static_cast<uint8_t>(payload.size() + more));
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return bytes;
}

// "Structured reply types".
TEST(WireTest, ContentChunks) {
  const auto none = [](const ChunkedReply& reply) {
    return Encoded([&](absl::Span<uint8_t> out) { return EncodeNoneChunk(reply, out); });
  };
  EXPECT_EQ(none(kStructured), StructuredChunk(1, 0, {}));
  EXPECT_EQ(none(kExtended), ExtendedChunk(1, 0, {}));

  const auto data = [](const ChunkedReply& reply) {
    return Encoded([&](absl::Span<uint8_t> out) {
      return EncodeOffsetData(reply, kReplyFlagDone, 0x0102030405060708, 4096, out);
    });
  };
  EXPECT_EQ(data(kStructured), StructuredChunk(1, 1, {1, 2, 3, 4, 5, 6, 7, 8}, 4096));
  EXPECT_EQ(data(kExtended), ExtendedChunk(1, 1, {1, 2, 3, 4, 5, 6, 7, 8}, 4096));

  const auto hole = [](const ChunkedReply& reply) {
    return Encoded(
        [&](absl::Span<uint8_t> out) { return EncodeOffsetHole(reply, 0, 0x0102030405060708, 4096, out); });
  };
  const std::vector<uint8_t> payload = {1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x10, 0};
  EXPECT_EQ(hole(kStructured), StructuredChunk(0, 2, payload));
  EXPECT_EQ(hole(kExtended), ExtendedChunk(0, 2, payload));
  OffsetHole decoded;
  DecodeOffsetHole(payload, &decoded);
  EXPECT_EQ(decoded.offset, 0x0102030405060708u);
  EXPECT_EQ(decoded.length, 4096u);
}

// "Structured reply types", error chunks.
TEST(WireTest, ErrorChunks) {
  const std::vector<uint8_t> plain = {0, 0, 0, 22, 0, 2, 'n', 'o'};
  const std::vector<uint8_t> offset = {0, 0, 0, 5, 0, 1, '!', 1, 2, 3, 4, 5, 6, 7, 8};
  for (const ChunkedReply& reply : {kStructured, kExtended}) {
    const auto chunk = reply.style == ReplyStyle::kExtended ? ExtendedChunk : StructuredChunk;
    EXPECT_EQ(Encoded([&](auto out) { return EncodeErrorChunk(reply, Error::kInval, "no", out); }),
              chunk(1, 0x8001, plain, 0));
    EXPECT_EQ(Encoded([&](auto out) {
                return EncodeErrorOffsetChunk(reply, Error::kIo, "!", 0x0102030405060708, out);
              }),
              chunk(1, 0x8002, offset, 0));
  }
  ErrorPayload decoded;
  ASSERT_TRUE(DecodeErrorPayload(ChunkType::kError, plain, &decoded));
  EXPECT_EQ(decoded.error, Error::kInval);
  EXPECT_EQ(decoded.message, "no");
  ASSERT_TRUE(DecodeErrorPayload(ChunkType::kErrorOffset, offset, &decoded));
  EXPECT_EQ(decoded.message, "!");
  EXPECT_EQ(decoded.offset, 0x0102030405060708u);
}

TEST(WireTest, ErrorPayloadsThatDoNotAddUp) {
  ErrorPayload decoded;
  EXPECT_FALSE(DecodeErrorPayload(ChunkType::kError, {}, &decoded));
  EXPECT_FALSE(DecodeErrorPayload(ChunkType::kError, std::vector<uint8_t>{0, 0, 0, 5, 0}, &decoded));
  EXPECT_FALSE(DecodeErrorPayload(ChunkType::kError, std::vector<uint8_t>{0, 0, 0, 0, 0, 0}, &decoded));
  EXPECT_FALSE(DecodeErrorPayload(ChunkType::kError, std::vector<uint8_t>{0, 0, 0, 5, 0, 1}, &decoded));
  EXPECT_FALSE(
      DecodeErrorPayload(ChunkType::kErrorOffset, std::vector<uint8_t>{0, 0, 0, 5, 0, 0, 1}, &decoded));
  std::vector<uint8_t> long_text(6 + 5000, 'x');
  Store32(&long_text[0], 5);
  Store16(&long_text[4], 5000);
  EXPECT_FALSE(DecodeErrorPayload(ChunkType::kError, long_text, &decoded));
  // Of a type that is not known yet, what every error begins with.
  EXPECT_TRUE(DecodeErrorPayload(static_cast<ChunkType>(0x8009), std::vector<uint8_t>{0, 0, 0, 5, 0, 0, 9},
                                 &decoded));
}

TEST(WireTest, LongErrorMessagesAreCut) {
  std::vector<uint8_t> out = Buffer(kMaxErrorChunkSize);
  const std::string message(10'000, 'x');
  EXPECT_EQ(EncodeErrorOffsetChunk(kExtended, Error::kIo, message, 2, absl::MakeSpan(out)),
            kMaxErrorChunkSize);
  ChunkHeader header;
  ASSERT_TRUE(DecodeChunkHeader(ReplyStyle::kExtended, out, &header));
  EXPECT_EQ(header.length, kMaxErrorChunkSize - kExtendedChunkHeaderSize);
  EXPECT_EQ(Load16(&out[36]), kMaxErrorMessage);
  EXPECT_EQ(Load64(&out[out.size() - 8]), 2u);
}

// "Structured reply types", NBD_REPLY_TYPE_BLOCK_STATUS and NBD_REPLY_TYPE_BLOCK_STATUS_EXT.
TEST(WireTest, BlockStatus) {
  const auto status = [](const ChunkedReply& reply) {
    return Encoded([&](absl::Span<uint8_t> out) {
      size_t size = EncodeBlockStatus(reply, kReplyFlagDone, 0x01020304, 2, out);
      size += EncodeExtentDescriptor(reply.style, {4096, 0}, out.subspan(size));
      size +=
          EncodeExtentDescriptor(reply.style, {0x0102030400010000, 0x0506070800000003}, out.subspan(size));
      return size;
    });
  };
  const std::vector<uint8_t> structured = {1, 2, 3, 4, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3};
  const std::vector<uint8_t> extended = {1, 2, 3, 4, 0, 0, 0,    2,  //
                                         0, 0, 0, 0, 0, 0, 0x10, 0,  //
                                         0, 0, 0, 0, 0, 0, 0,    0,  //
                                         1, 2, 3, 4, 0, 1, 0,    0,  //
                                         5, 6, 7, 8, 0, 0, 0,    3};
  EXPECT_EQ(status(kStructured), StructuredChunk(1, 5, structured));
  EXPECT_EQ(status(kExtended), ExtendedChunk(1, 6, extended));

  BlockStatusPayload payload;
  ExtentDescriptor extent;
  ASSERT_TRUE(DecodeBlockStatus(ReplyStyle::kStructured, structured, &payload));
  EXPECT_EQ(payload.context_id, 0x01020304u);
  ASSERT_EQ(payload.descriptors.size(), 2 * ExtentDescriptorSize(ReplyStyle::kStructured));
  DecodeExtentDescriptor(ReplyStyle::kStructured, payload.descriptors.subspan(8), &extent);
  EXPECT_EQ(extent.length, 0x00010000u);
  EXPECT_EQ(extent.status, 3u);
  ASSERT_TRUE(DecodeBlockStatus(ReplyStyle::kExtended, extended, &payload));
  EXPECT_EQ(payload.context_id, 0x01020304u);
  ASSERT_EQ(payload.descriptors.size(), 2 * ExtentDescriptorSize(ReplyStyle::kExtended));
  DecodeExtentDescriptor(ReplyStyle::kExtended, payload.descriptors.subspan(16), &extent);
  EXPECT_EQ(extent.length, 0x0102030400010000u);
  EXPECT_EQ(extent.status, 0x0506070800000003u);
}

TEST(WireTest, BlockStatusPayloadsThatDoNotAddUp) {
  BlockStatusPayload payload;
  for (const size_t size : {0u, 4u, 11u, 13u}) {
    EXPECT_FALSE(DecodeBlockStatus(ReplyStyle::kStructured, Buffer(size), &payload)) << size;
  }
  for (const size_t size : {0u, 4u, 8u, 23u, 25u}) {
    EXPECT_FALSE(DecodeBlockStatus(ReplyStyle::kExtended, Buffer(size), &payload)) << size;
  }
  std::vector<uint8_t> extended = Buffer(8 + 16);
  Store32(&extended[4], 2);
  EXPECT_FALSE(DecodeBlockStatus(ReplyStyle::kExtended, extended, &payload));
  Store32(&extended[4], 1);
  EXPECT_TRUE(DecodeBlockStatus(ReplyStyle::kExtended, extended, &payload));
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

// "The client SHOULD treat an unexpected error value as if it had been NBD_EINVAL".
TEST(WireTest, ErrorsBecomeErrnos) {
  for (const int error : {0, EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ESHUTDOWN}) {
    EXPECT_EQ(ErrnoFromError(ErrorFromErrno(error)), error);
  }
  EXPECT_EQ(ErrnoFromError(Error::kNotSup), ENOTSUP);
  EXPECT_EQ(ErrnoFromError(static_cast<Error>(4711)), EINVAL);
}

}  // namespace
}  // namespace berth::nbd
