#include "nbd/wire.h"

#include <algorithm>
#include <cassert>
#include <cerrno>

namespace berth::nbd {
namespace {

// What every error chunk's payload begins with: the error and the length of its message.
constexpr size_t kErrorSize = 6;

// Writes the fields of a message one after the other.
class Writer {
 public:
  Writer(absl::Span<uint8_t> out, size_t size) : next_(out.data()) {
    assert(out.size() >= size);
    (void)size;
  }
  Writer& Put16(uint16_t value) {
    Store16(next_, value);
    next_ += 2;
    return *this;
  }
  Writer& Put32(uint32_t value) {
    Store32(next_, value);
    next_ += 4;
    return *this;
  }
  Writer& Put64(uint64_t value) {
    Store64(next_, value);
    next_ += 8;
    return *this;
  }
  Writer& PutText(absl::string_view text) {
    next_ = std::copy(text.begin(), text.end(), next_);
    return *this;
  }

 private:
  uint8_t* next_;
};

// A chunk's header, and then the place of its payload.
Writer PutChunkHeader(const ChunkedReply& reply, uint16_t flags, ChunkType type, uint64_t length,
                      absl::Span<uint8_t> out) {
  EncodeChunkHeader(reply.style, {flags, type, reply.cookie, length, reply.offset}, out);
  return Writer(out.subspan(ChunkHeaderSize(reply.style)), 0);
}

}  // namespace

Error ErrorFromErrno(int error_number, bool fast_zero) {
  switch (error_number) {
    case 0:
      return Error::kNone;
    case EPERM:
    case EACCES:
    case EROFS:
      return Error::kPerm;
    case ENOMEM:
      return Error::kNoMem;
    case EINVAL:
      return Error::kInval;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return Error::kNoSpc;
    case EOVERFLOW:
      return Error::kOverflow;
    case ENOTSUP:
      return fast_zero ? Error::kNotSup : Error::kInval;
    case ESHUTDOWN:
      return Error::kShutdown;
    default:
      return Error::kIo;
  }
}

int ErrnoFromError(Error error) {
  switch (error) {
    case Error::kNone:
      return 0;
    case Error::kPerm:
      return EPERM;
    case Error::kIo:
      return EIO;
    case Error::kNoMem:
      return ENOMEM;
    case Error::kNoSpc:
      return ENOSPC;
    case Error::kOverflow:
      return EOVERFLOW;
    case Error::kNotSup:
      return ENOTSUP;
    case Error::kShutdown:
      return ESHUTDOWN;
    case Error::kInval:
      break;
  }
  return EINVAL;
}

void EncodeGreeting(const Greeting& greeting, absl::Span<uint8_t> out) {
  Writer(out, kGreetingSize).Put64(kInitPassword).Put64(kOptionMagic).Put16(greeting.handshake_flags);
}

bool DecodeGreeting(absl::Span<const uint8_t> in, Greeting* out) {
  assert(in.size() >= kGreetingSize);
  out->handshake_flags = Load16(&in[16]);
  return Load64(&in[0]) == kInitPassword && Load64(&in[8]) == kOptionMagic;
}

void EncodeOptionHeader(const OptionHeader& header, absl::Span<uint8_t> out) {
  Writer(out, kOptionHeaderSize)
      .Put64(kOptionMagic)
      .Put32(static_cast<uint32_t>(header.option))
      .Put32(header.length);
}

bool DecodeOptionHeader(absl::Span<const uint8_t> in, OptionHeader* out) {
  assert(in.size() >= kOptionHeaderSize);
  out->option = static_cast<Option>(Load32(&in[8]));
  out->length = Load32(&in[12]);
  return Load64(&in[0]) == kOptionMagic;
}

void EncodeOptionReplyHeader(const OptionReplyHeader& header, absl::Span<uint8_t> out) {
  Writer(out, kOptionReplyHeaderSize)
      .Put64(kOptionReplyMagic)
      .Put32(static_cast<uint32_t>(header.option))
      .Put32(static_cast<uint32_t>(header.type))
      .Put32(header.length);
}

bool DecodeOptionReplyHeader(absl::Span<const uint8_t> in, OptionReplyHeader* out) {
  assert(in.size() >= kOptionReplyHeaderSize);
  out->option = static_cast<Option>(Load32(&in[8]));
  out->type = static_cast<OptionReply>(Load32(&in[12]));
  out->length = Load32(&in[16]);
  return Load64(&in[0]) == kOptionReplyMagic;
}

void EncodeInfoExport(const InfoExport& info, absl::Span<uint8_t> out) {
  Writer(out, kInfoExportSize)
      .Put16(static_cast<uint16_t>(InfoType::kExport))
      .Put64(info.size)
      .Put16(info.transmission_flags);
}

void EncodeInfoBlockSize(const InfoBlockSize& info, absl::Span<uint8_t> out) {
  Writer(out, kInfoBlockSizeSize)
      .Put16(static_cast<uint16_t>(InfoType::kBlockSize))
      .Put32(info.minimum)
      .Put32(info.preferred)
      .Put32(info.maximum_payload);
}

void DecodeInfoExport(absl::Span<const uint8_t> in, InfoExport* out) {
  assert(in.size() >= kInfoExportSize);
  out->size = Load64(&in[2]);
  out->transmission_flags = Load16(&in[10]);
}

void DecodeInfoBlockSize(absl::Span<const uint8_t> in, InfoBlockSize* out) {
  assert(in.size() >= kInfoBlockSizeSize);
  out->minimum = Load32(&in[2]);
  out->preferred = Load32(&in[6]);
  out->maximum_payload = Load32(&in[10]);
}

void EncodeRequest(const Request& request, absl::Span<uint8_t> out) {
  Writer(out, kRequestSize)
      .Put32(kRequestMagic)
      .Put16(request.flags)
      .Put16(static_cast<uint16_t>(request.command))
      .Put64(request.cookie)
      .Put64(request.offset)
      .Put32(static_cast<uint32_t>(request.length));
}

bool DecodeRequest(absl::Span<const uint8_t> in, Request* out) {
  assert(in.size() >= kRequestSize);
  const uint8_t* bytes = in.data();
  out->flags = Load16(bytes + 4);
  out->command = static_cast<Command>(Load16(bytes + 6));
  out->cookie = Load64(bytes + 8);
  out->offset = Load64(bytes + 16);
  out->length = Load32(bytes + 24);
  return Load32(bytes) == kRequestMagic;
}

void EncodeExtendedRequest(const Request& request, absl::Span<uint8_t> out) {
  Writer(out, kExtendedRequestSize)
      .Put32(kExtendedRequestMagic)
      .Put16(request.flags)
      .Put16(static_cast<uint16_t>(request.command))
      .Put64(request.cookie)
      .Put64(request.offset)
      .Put64(request.length);
}

bool DecodeExtendedRequest(absl::Span<const uint8_t> in, Request* out) {
  assert(in.size() >= kExtendedRequestSize);
  const uint8_t* bytes = in.data();
  out->flags = Load16(bytes + 4);
  out->command = static_cast<Command>(Load16(bytes + 6));
  out->cookie = Load64(bytes + 8);
  out->offset = Load64(bytes + 16);
  out->length = Load64(bytes + 24);
  return Load32(bytes) == kExtendedRequestMagic;
}

void EncodeSimpleReply(const SimpleReply& reply, absl::Span<uint8_t> out) {
  Writer(out, kSimpleReplySize)
      .Put32(kSimpleReplyMagic)
      .Put32(static_cast<uint32_t>(reply.error))
      .Put64(reply.cookie);
}

bool DecodeSimpleReply(absl::Span<const uint8_t> in, SimpleReply* out) {
  assert(in.size() >= kSimpleReplySize);
  out->error = static_cast<Error>(Load32(&in[4]));
  out->cookie = Load64(&in[8]);
  return Load32(&in[0]) == kSimpleReplyMagic;
}

void EncodeChunkHeader(ReplyStyle style, const ChunkHeader& header, absl::Span<uint8_t> out) {
  const bool extended = style == ReplyStyle::kExtended;
  Writer writer(out, ChunkHeaderSize(style));
  writer.Put32(extended ? kExtendedReplyMagic : kStructuredReplyMagic)
      .Put16(header.flags)
      .Put16(static_cast<uint16_t>(header.type))
      .Put64(header.cookie);
  if (extended) {
    writer.Put64(header.offset).Put64(header.length);
  } else {
    writer.Put32(static_cast<uint32_t>(header.length));
  }
}

bool DecodeChunkHeader(ReplyStyle style, absl::Span<const uint8_t> in, ChunkHeader* out) {
  assert(in.size() >= ChunkHeaderSize(style));
  out->flags = Load16(&in[4]);
  out->type = static_cast<ChunkType>(Load16(&in[6]));
  out->cookie = Load64(&in[8]);
  if (style == ReplyStyle::kExtended) {
    out->offset = Load64(&in[16]);
    out->length = Load64(&in[24]);
    return Load32(&in[0]) == kExtendedReplyMagic;
  }
  out->offset = 0;
  out->length = Load32(&in[16]);
  return Load32(&in[0]) == kStructuredReplyMagic;
}

size_t EncodeNoneChunk(const ChunkedReply& reply, absl::Span<uint8_t> out) {
  PutChunkHeader(reply, kReplyFlagDone, ChunkType::kNone, 0, out);
  return ChunkHeaderSize(reply.style);
}

size_t EncodeOffsetData(const ChunkedReply& reply, uint16_t flags, uint64_t offset, uint64_t length,
                        absl::Span<uint8_t> out) {
  PutChunkHeader(reply, flags, ChunkType::kOffsetData, kOffsetDataSize + length, out).Put64(offset);
  return ChunkHeaderSize(reply.style) + kOffsetDataSize;
}

size_t EncodeOffsetHole(const ChunkedReply& reply, uint16_t flags, uint64_t offset, uint32_t length,
                        absl::Span<uint8_t> out) {
  PutChunkHeader(reply, flags, ChunkType::kOffsetHole, kOffsetHoleSize, out).Put64(offset).Put32(length);
  return ChunkHeaderSize(reply.style) + kOffsetHoleSize;
}

void DecodeOffsetHole(absl::Span<const uint8_t> in, OffsetHole* out) {
  assert(in.size() >= kOffsetHoleSize);
  out->offset = Load64(&in[0]);
  out->length = Load32(&in[8]);
}

size_t EncodeErrorChunk(const ChunkedReply& reply, Error error, absl::string_view message,
                        absl::Span<uint8_t> out) {
  message = message.substr(0, kMaxErrorMessage);
  const size_t length = kErrorSize + message.size();
  PutChunkHeader(reply, kReplyFlagDone, ChunkType::kError, length, out)
      .Put32(static_cast<uint32_t>(error))
      .Put16(static_cast<uint16_t>(message.size()))
      .PutText(message);
  return ChunkHeaderSize(reply.style) + length;
}

size_t EncodeErrorOffsetChunk(const ChunkedReply& reply, Error error, absl::string_view message,
                              uint64_t offset, absl::Span<uint8_t> out) {
  message = message.substr(0, kMaxErrorMessage);
  const size_t length = kErrorSize + message.size() + 8;
  PutChunkHeader(reply, kReplyFlagDone, ChunkType::kErrorOffset, length, out)
      .Put32(static_cast<uint32_t>(error))
      .Put16(static_cast<uint16_t>(message.size()))
      .PutText(message)
      .Put64(offset);
  return ChunkHeaderSize(reply.style) + length;
}

bool DecodeErrorPayload(ChunkType type, absl::Span<const uint8_t> in, ErrorPayload* out) {
  if (in.size() < kErrorSize) return false;
  out->error = static_cast<Error>(Load32(&in[0]));
  const size_t text = Load16(&in[4]);
  in.remove_prefix(kErrorSize);
  if (out->error == Error::kNone || text > in.size() || text > kMaxStringSize) return false;
  out->message = absl::string_view(reinterpret_cast<const char*>(in.data()), text);
  in.remove_prefix(text);
  if (type == ChunkType::kErrorOffset) {
    if (in.size() < 8) return false;
    out->offset = Load64(in.data());
  }
  return true;
}

size_t EncodeBlockStatus(const ChunkedReply& reply, uint16_t flags, uint32_t context_id, uint32_t descriptors,
                         absl::Span<uint8_t> out) {
  const bool extended = reply.style == ReplyStyle::kExtended;
  const size_t length = BlockStatusSize(reply.style) + descriptors * ExtentDescriptorSize(reply.style);
  Writer writer = PutChunkHeader(
      reply, flags, extended ? ChunkType::kBlockStatusExt : ChunkType::kBlockStatus, length, out);
  writer.Put32(context_id);
  if (extended) writer.Put32(descriptors);
  return ChunkHeaderSize(reply.style) + BlockStatusSize(reply.style);
}

size_t EncodeExtentDescriptor(ReplyStyle style, const ExtentDescriptor& extent, absl::Span<uint8_t> out) {
  Writer writer(out, ExtentDescriptorSize(style));
  if (style == ReplyStyle::kExtended) {
    writer.Put64(extent.length).Put64(extent.status);
  } else {
    writer.Put32(static_cast<uint32_t>(extent.length)).Put32(static_cast<uint32_t>(extent.status));
  }
  return ExtentDescriptorSize(style);
}

void DecodeExtentDescriptor(ReplyStyle style, absl::Span<const uint8_t> in, ExtentDescriptor* out) {
  assert(in.size() >= ExtentDescriptorSize(style));
  if (style == ReplyStyle::kExtended) {
    *out = {Load64(&in[0]), Load64(&in[8])};
  } else {
    *out = {Load32(&in[0]), Load32(&in[4])};
  }
}

bool DecodeBlockStatus(ReplyStyle style, absl::Span<const uint8_t> in, BlockStatusPayload* out) {
  const size_t head = BlockStatusSize(style);
  const size_t each = ExtentDescriptorSize(style);
  if (in.size() < head + each || (in.size() - head) % each != 0) return false;
  out->context_id = Load32(&in[0]);
  out->descriptors = in.subspan(head);
  return style != ReplyStyle::kExtended || Load32(&in[4]) == out->descriptors.size() / each;
}

}  // namespace berth::nbd
