#include "nbd/wire.h"

#include <algorithm>
#include <cassert>
#include <cerrno>

namespace berth::nbd {
namespace {

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

Writer PutChunkHeader(const ChunkHeader& header, absl::Span<uint8_t> out) {
  return Writer(out, kChunkHeaderSize + header.length)
      .Put32(kStructuredReplyMagic)
      .Put16(header.flags)
      .Put16(static_cast<uint16_t>(header.type))
      .Put64(header.cookie)
      .Put32(header.length);
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

void EncodeChunkHeader(const ChunkHeader& header, absl::Span<uint8_t> out) {
  Writer(out, kChunkHeaderSize)
      .Put32(kStructuredReplyMagic)
      .Put16(header.flags)
      .Put16(static_cast<uint16_t>(header.type))
      .Put64(header.cookie)
      .Put32(header.length);
}

bool DecodeChunkHeader(absl::Span<const uint8_t> in, ChunkHeader* out) {
  assert(in.size() >= kChunkHeaderSize);
  out->flags = Load16(&in[4]);
  out->type = static_cast<ChunkType>(Load16(&in[6]));
  out->cookie = Load64(&in[8]);
  out->length = Load32(&in[16]);
  return Load32(&in[0]) == kStructuredReplyMagic;
}

void EncodeOffsetData(uint16_t flags, uint64_t cookie, uint64_t offset, uint32_t length,
                      absl::Span<uint8_t> out) {
  assert(out.size() >= kOffsetDataSize);
  EncodeChunkHeader({flags, ChunkType::kOffsetData, cookie, length + 8}, out);
  Store64(&out[kChunkHeaderSize], offset);
}

void EncodeOffsetHole(uint16_t flags, uint64_t cookie, uint64_t offset, uint32_t length,
                      absl::Span<uint8_t> out) {
  PutChunkHeader({flags, ChunkType::kOffsetHole, cookie, 12}, out).Put64(offset).Put32(length);
}

size_t EncodeErrorChunk(uint64_t cookie, Error error, absl::string_view message, absl::Span<uint8_t> out) {
  message = message.substr(0, kMaxErrorMessage);
  const uint32_t length = static_cast<uint32_t>(6 + message.size());
  PutChunkHeader({kReplyFlagDone, ChunkType::kError, cookie, length}, out)
      .Put32(static_cast<uint32_t>(error))
      .Put16(static_cast<uint16_t>(message.size()))
      .PutText(message);
  return kChunkHeaderSize + length;
}

size_t EncodeErrorOffsetChunk(uint64_t cookie, Error error, absl::string_view message, uint64_t offset,
                              absl::Span<uint8_t> out) {
  message = message.substr(0, kMaxErrorMessage);
  const uint32_t length = static_cast<uint32_t>(14 + message.size());
  PutChunkHeader({kReplyFlagDone, ChunkType::kErrorOffset, cookie, length}, out)
      .Put32(static_cast<uint32_t>(error))
      .Put16(static_cast<uint16_t>(message.size()))
      .PutText(message)
      .Put64(offset);
  return kChunkHeaderSize + length;
}

void EncodeBlockStatus(uint16_t flags, uint64_t cookie, uint32_t context_id, uint32_t extents,
                       absl::Span<uint8_t> out) {
  assert(out.size() >= kBlockStatusSize);
  const uint32_t length = 4 + extents * static_cast<uint32_t>(kExtentDescriptorSize);
  EncodeChunkHeader({flags, ChunkType::kBlockStatus, cookie, length}, out);
  Store32(&out[kChunkHeaderSize], context_id);
}

void EncodeExtentDescriptor(const ExtentDescriptor& extent, absl::Span<uint8_t> out) {
  Writer(out, kExtentDescriptorSize).Put32(extent.length).Put32(extent.status);
}

}  // namespace berth::nbd
