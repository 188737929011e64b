// The bytes of the NBD protocol: its constants and the codec of its fixed-size messages.
//
// Pure functions without state: any thread. Structs hold values in host order; bytes on the wire are in
// network order. Section names are proto.md's. A decode function is given at least the message's size, which
// the constant beside it names; what else it demands stands at the function.
#ifndef BERTH_NBD_WIRE_H_
#define BERTH_NBD_WIRE_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "image/io/big_endian.h"

namespace berth::nbd {

// ---- Magic numbers.

inline constexpr uint64_t kInitPassword = 0x4e42444d41474943;  // "NBDMAGIC"
inline constexpr uint64_t kOptionMagic = 0x49484156454f5054;   // "IHAVEOPT"
inline constexpr uint64_t kOptionReplyMagic = 0x0003e889045565a9;
inline constexpr uint32_t kRequestMagic = 0x25609513;
inline constexpr uint32_t kSimpleReplyMagic = 0x67446698;
inline constexpr uint32_t kStructuredReplyMagic = 0x668e33ef;
inline constexpr uint32_t kExtendedRequestMagic = 0x21e41c71;
inline constexpr uint32_t kExtendedReplyMagic = 0x6e8a278c;

// What the transmission phase of a connection speaks (proto.md, "Transmission"). Each negotiated style takes
// precedence over those before it.
enum class ReplyStyle : uint8_t {
  kSimple,      // Compact requests, simple replies.
  kStructured,  // Compact requests, structured replies beside simple ones.
  kExtended,    // Extended requests and replies (proto.md of the branch extension-ext-header).
};

// ---- Limits of the specification and defaults where it leaves them open.

inline constexpr size_t kMaxStringSize = 4096;  // "Conventions"
inline constexpr uint32_t kMaxPayload = uint32_t{32}
                                        << 20;  // "Size constraints": 2^25, what every peer may use.
inline constexpr uint32_t kDefaultPreferredBlockSize = 4096;  // "Size constraints"
inline constexpr uint32_t kMaxExtentsPerChunk = 1 << 20;      // NBD_REPLY_TYPE_BLOCK_STATUS
inline constexpr size_t kExportNameReplyZeroes = 124;         // "Newstyle negotiation"

// ---- Handshake flags (16 bits, server) and client flags (32 bits).

inline constexpr uint16_t kFlagFixedNewstyle = 1 << 0;
inline constexpr uint16_t kFlagNoZeroes = 1 << 1;
inline constexpr uint32_t kClientFlagFixedNewstyle = 1 << 0;
inline constexpr uint32_t kClientFlagNoZeroes = 1 << 1;

// ---- Transmission flags (16 bits).

inline constexpr uint16_t kFlagHasFlags = 1 << 0;
inline constexpr uint16_t kFlagReadOnly = 1 << 1;
inline constexpr uint16_t kFlagSendFlush = 1 << 2;
inline constexpr uint16_t kFlagSendFua = 1 << 3;
inline constexpr uint16_t kFlagRotational = 1 << 4;
inline constexpr uint16_t kFlagSendTrim = 1 << 5;
inline constexpr uint16_t kFlagSendWriteZeroes = 1 << 6;
inline constexpr uint16_t kFlagSendDf = 1 << 7;
inline constexpr uint16_t kFlagCanMultiConn = 1 << 8;
inline constexpr uint16_t kFlagSendResize = 1 << 9;
inline constexpr uint16_t kFlagSendCache = 1 << 10;
inline constexpr uint16_t kFlagSendFastZero = 1 << 11;
inline constexpr uint16_t kFlagBlockStatusPayload = 1 << 12;

// ---- "Option types", "Option reply types", information types.

enum class Option : uint32_t {
  kExportName = 1,
  kAbort = 2,
  kList = 3,
  kPeekExport = 4,
  kStartTls = 5,
  kInfo = 6,
  kGo = 7,
  kStructuredReply = 8,
  kListMetaContext = 9,
  kSetMetaContext = 10,
  kExtendedHeaders = 11,
};

inline constexpr uint32_t kOptionErrorBit = uint32_t{1} << 31;

enum class OptionReply : uint32_t {
  kAck = 1,
  kServer = 2,
  kInfo = 3,
  kMetaContext = 4,
  kErrUnsup = kOptionErrorBit + 1,
  kErrPolicy = kOptionErrorBit + 2,
  kErrInvalid = kOptionErrorBit + 3,
  kErrPlatform = kOptionErrorBit + 4,
  kErrTlsReqd = kOptionErrorBit + 5,
  kErrUnknown = kOptionErrorBit + 6,
  kErrShutdown = kOptionErrorBit + 7,
  kErrBlockSizeReqd = kOptionErrorBit + 8,
  kErrTooBig = kOptionErrorBit + 9,
  kErrExtHeaderReqd = kOptionErrorBit + 10,
};

enum class InfoType : uint16_t { kExport = 0, kName = 1, kDescription = 2, kBlockSize = 3 };

// ---- Metadata contexts ("The base: metadata namespace").

inline constexpr absl::string_view kBaseNamespace = "base:";
inline constexpr uint32_t kStateHole = 1 << 0;
inline constexpr uint32_t kStateZero = 1 << 1;

// ---- "Request types", "Command flags".

enum class Command : uint16_t {
  kRead = 0,
  kWrite = 1,
  kDisconnect = 2,
  kFlush = 3,
  kTrim = 4,
  kCache = 5,
  kWriteZeroes = 6,
  kBlockStatus = 7,
  kResize = 8,
};

inline constexpr uint16_t kCommandFlagFua = 1 << 0;
inline constexpr uint16_t kCommandFlagNoHole = 1 << 1;
inline constexpr uint16_t kCommandFlagDf = 1 << 2;
inline constexpr uint16_t kCommandFlagReqOne = 1 << 3;
inline constexpr uint16_t kCommandFlagFastZero = 1 << 4;
inline constexpr uint16_t kCommandFlagPayloadLen = 1 << 5;

// ---- "Structured reply flags", "Structured reply types".

inline constexpr uint16_t kReplyFlagDone = 1 << 0;
inline constexpr uint16_t kChunkErrorBit = 1 << 15;

enum class ChunkType : uint16_t {
  kNone = 0,
  kOffsetData = 1,
  kOffsetHole = 2,
  kBlockStatus = 5,
  kBlockStatusExt = 6,
  kError = kChunkErrorBit + 1,
  kErrorOffset = kChunkErrorBit + 2,
};

// ---- "Error values".

enum class Error : uint32_t {
  kNone = 0,
  kPerm = 1,
  kIo = 5,
  kNoMem = 12,
  kInval = 22,
  kNoSpc = 28,
  kOverflow = 75,
  kNotSup = 95,
  kShutdown = 108,
};

// The one place where an errno becomes an error of the protocol. Unknown ones become kIo. `fast_zero` says
// that the request carried NBD_CMD_FLAG_FAST_ZERO, the only kind that may be answered with kNotSup; for
// others that is kInval.
Error ErrorFromErrno(int error_number, bool fast_zero = false);

// What a client makes of it: "The client SHOULD treat an unexpected error value as if it had been
// NBD_EINVAL".
int ErrnoFromError(Error error);

// ---- Handshake messages ("Newstyle negotiation", "Fixed newstyle negotiation"). What follows a header has
// a length of its own and is the handshake's matter.

// The server's first message: both magic numbers and its handshake flags.
inline constexpr size_t kGreetingSize = 18;
struct Greeting {
  uint16_t handshake_flags = 0;
};
void EncodeGreeting(const Greeting& greeting, absl::Span<uint8_t> out);
// False where a magic number is wrong.
[[nodiscard]] bool DecodeGreeting(absl::Span<const uint8_t> in, Greeting* out);

// The client's answer: Load32() of its flags.
inline constexpr size_t kClientFlagsSize = 4;

inline constexpr size_t kOptionHeaderSize = 16;
struct OptionHeader {
  Option option = Option::kAbort;  // May be one that the enumeration does not name.
  uint32_t length = 0;             // Of the data that follows.
};
void EncodeOptionHeader(const OptionHeader& header, absl::Span<uint8_t> out);
// False where the magic number is wrong.
[[nodiscard]] bool DecodeOptionHeader(absl::Span<const uint8_t> in, OptionHeader* out);

inline constexpr size_t kOptionReplyHeaderSize = 20;
struct OptionReplyHeader {
  Option option = Option::kAbort;
  OptionReply type = OptionReply::kAck;
  uint32_t length = 0;
};
void EncodeOptionReplyHeader(const OptionReplyHeader& header, absl::Span<uint8_t> out);
// False where the magic number is wrong.
[[nodiscard]] bool DecodeOptionReplyHeader(absl::Span<const uint8_t> in, OptionReplyHeader* out);

// NBD_INFO_EXPORT's payload, its type included. Without the type it is also the answer to
// NBD_OPT_EXPORT_NAME.
inline constexpr size_t kInfoExportSize = 12;
struct InfoExport {
  uint64_t size = 0;
  uint16_t transmission_flags = 0;
};
void EncodeInfoExport(const InfoExport& info, absl::Span<uint8_t> out);
// Looks past the type.
void DecodeInfoExport(absl::Span<const uint8_t> in, InfoExport* out);

// NBD_INFO_BLOCK_SIZE's payload, its type included.
inline constexpr size_t kInfoBlockSizeSize = 14;
struct InfoBlockSize {
  uint32_t minimum = 1;
  uint32_t preferred = kDefaultPreferredBlockSize;
  uint32_t maximum_payload = kMaxPayload;
};
void EncodeInfoBlockSize(const InfoBlockSize& info, absl::Span<uint8_t> out);
// Looks past the type; the values are as they came.
void DecodeInfoBlockSize(absl::Span<const uint8_t> in, InfoBlockSize* out);

// ---- "Request message".

inline constexpr size_t kRequestSize = 28;
inline constexpr size_t kExtendedRequestSize = 32;
constexpr size_t RequestSize(ReplyStyle style) {
  return style == ReplyStyle::kExtended ? kExtendedRequestSize : kRequestSize;
}
struct Request {
  uint16_t flags = 0;
  Command command = Command::kRead;  // May be one that the enumeration does not name.
  uint64_t cookie = 0;               // The client's, handed back as it came.
  uint64_t offset = 0;
  // 32 bits in compact requests, 64 in extended ones. There it is the payload's with kCommandFlagPayloadLen,
  // and without it what the request is about.
  uint64_t length = 0;
};
// Writes the low 32 bits of the length.
void EncodeRequest(const Request& request, absl::Span<uint8_t> out);
// False where the magic number is wrong.
[[nodiscard]] bool DecodeRequest(absl::Span<const uint8_t> in, Request* out);
void EncodeExtendedRequest(const Request& request, absl::Span<uint8_t> out);
[[nodiscard]] bool DecodeExtendedRequest(absl::Span<const uint8_t> in, Request* out);

// NBD_CMD_BLOCK_STATUS with a payload: the length that it is about, and then the IDs of contexts, each of 32
// bits.
inline constexpr size_t kBlockStatusQuerySize = 8;
inline constexpr size_t kContextIdSize = 4;

// ---- "Simple reply message".

inline constexpr size_t kSimpleReplySize = 16;
struct SimpleReply {
  Error error = Error::kNone;
  uint64_t cookie = 0;
};
void EncodeSimpleReply(const SimpleReply& reply, absl::Span<uint8_t> out);
[[nodiscard]] bool DecodeSimpleReply(absl::Span<const uint8_t> in, SimpleReply* out);

// ---- "Structured reply chunk message", "Extended reply chunk message".

inline constexpr size_t kChunkHeaderSize = 20;
inline constexpr size_t kExtendedChunkHeaderSize = 32;
constexpr size_t ChunkHeaderSize(ReplyStyle style) {
  return style == ReplyStyle::kExtended ? kExtendedChunkHeaderSize : kChunkHeaderSize;
}
struct ChunkHeader {
  uint16_t flags = 0;
  ChunkType type = ChunkType::kNone;
  uint64_t cookie = 0;
  uint64_t length = 0;  // Of the payload that follows; 32 bits in structured chunks.
  uint64_t offset = 0;  // The request's, which extended chunks repeat.
};
void EncodeChunkHeader(ReplyStyle style, const ChunkHeader& header, absl::Span<uint8_t> out);
// False where the magic number is wrong.
[[nodiscard]] bool DecodeChunkHeader(ReplyStyle style, absl::Span<const uint8_t> in, ChunkHeader* out);

// ---- "Structured reply types". The functions that write a chunk begin with its header, and return how many
// bytes they wrote.

// What the chunks of one reply have in common.
struct ChunkedReply {
  ReplyStyle style = ReplyStyle::kStructured;
  uint64_t cookie = 0;
  uint64_t offset = 0;  // The request's.
};

// NBD_REPLY_TYPE_NONE, the last of its reply.
size_t EncodeNoneChunk(const ChunkedReply& reply, absl::Span<uint8_t> out);

// NBD_REPLY_TYPE_OFFSET_DATA up to its data, `length` bytes that follow.
inline constexpr size_t kOffsetDataSize = 8;
inline constexpr size_t kMaxOffsetDataSize = kExtendedChunkHeaderSize + kOffsetDataSize;
size_t EncodeOffsetData(const ChunkedReply& reply, uint16_t flags, uint64_t offset, uint64_t length,
                        absl::Span<uint8_t> out);

// NBD_REPLY_TYPE_OFFSET_HOLE. Its size has 32 bits with extended headers too.
inline constexpr size_t kOffsetHoleSize = 12;
inline constexpr size_t kMaxOffsetHoleSize = kExtendedChunkHeaderSize + kOffsetHoleSize;
size_t EncodeOffsetHole(const ChunkedReply& reply, uint16_t flags, uint64_t offset, uint32_t length,
                        absl::Span<uint8_t> out);
struct OffsetHole {
  uint64_t offset = 0;
  uint32_t length = 0;
};
// The payload, of kOffsetHoleSize bytes.
void DecodeOffsetHole(absl::Span<const uint8_t> in, OffsetHole* out);

// NBD_REPLY_TYPE_ERROR, the last of its reply. The message is cut at kMaxErrorMessage bytes.
inline constexpr size_t kMaxErrorMessage = 256;
inline constexpr size_t kMaxErrorChunkSize = kExtendedChunkHeaderSize + 14 + kMaxErrorMessage;
size_t EncodeErrorChunk(const ChunkedReply& reply, Error error, absl::string_view message,
                        absl::Span<uint8_t> out);
// The same of NBD_REPLY_TYPE_ERROR_OFFSET.
size_t EncodeErrorOffsetChunk(const ChunkedReply& reply, Error error, absl::string_view message,
                              uint64_t offset, absl::Span<uint8_t> out);
struct ErrorPayload {
  Error error = Error::kNone;
  absl::string_view message;  // Points into the bytes that were decoded.
  uint64_t offset = 0;        // Of NBD_REPLY_TYPE_ERROR_OFFSET.
};
// The payload of a chunk of any error type, of any size; only of kErrorOffset is the offset looked at. False
// where the lengths do not add up, or there is no error in it.
[[nodiscard]] bool DecodeErrorPayload(ChunkType type, absl::Span<const uint8_t> in, ErrorPayload* out);

// NBD_REPLY_TYPE_BLOCK_STATUS, or with extended headers NBD_REPLY_TYPE_BLOCK_STATUS_EXT, up to its
// descriptors, which follow.
constexpr size_t BlockStatusSize(ReplyStyle style) { return style == ReplyStyle::kExtended ? 8 : 4; }
constexpr size_t ExtentDescriptorSize(ReplyStyle style) { return style == ReplyStyle::kExtended ? 16 : 8; }
size_t EncodeBlockStatus(const ChunkedReply& reply, uint16_t flags, uint32_t context_id, uint32_t descriptors,
                         absl::Span<uint8_t> out);
struct ExtentDescriptor {
  uint64_t length = 0;  // 32 bits in NBD_REPLY_TYPE_BLOCK_STATUS, as the next.
  uint64_t status = 0;
};
// Returns ExtentDescriptorSize(style).
size_t EncodeExtentDescriptor(ReplyStyle style, const ExtentDescriptor& extent, absl::Span<uint8_t> out);
void DecodeExtentDescriptor(ReplyStyle style, absl::Span<const uint8_t> in, ExtentDescriptor* out);
struct BlockStatusPayload {
  uint32_t context_id = 0;
  absl::Span<const uint8_t> descriptors;  // Points into what was decoded; one or more of whole descriptors.
};
// A payload of any size. False where its length is no possible one, or is not what its count says.
[[nodiscard]] bool DecodeBlockStatus(ReplyStyle style, absl::Span<const uint8_t> in, BlockStatusPayload* out);

}  // namespace berth::nbd

#endif  // BERTH_NBD_WIRE_H_
