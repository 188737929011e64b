#include "nbd/reply_writer.h"

#include <cassert>
#include <cstring>
#include <utility>
#include <vector>

namespace berth::nbd {

void ReplyWriter::Simple(const Request& request, Error error) {
  EncodeSimpleReply({error, request.cookie}, absl::MakeSpan(queue_.Add(kSimpleReplySize), kSimpleReplySize));
}

void ReplyWriter::Success(const Request& request) {
  if (style_ != ReplyStyle::kExtended) return Simple(request, Error::kNone);
  const size_t size = ChunkHeaderSize(style_);
  EncodeNoneChunk(ReplyTo(request), absl::MakeSpan(queue_.Add(size), size));
}

void ReplyWriter::Data(const Request& request, Buffer payload) {
  const size_t length = static_cast<size_t>(request.length);
  if (style_ == ReplyStyle::kSimple) {
    uint8_t* const header = queue_.Add(kSimpleReplySize, std::move(payload), length);
    EncodeSimpleReply({Error::kNone, request.cookie}, absl::MakeSpan(header, kSimpleReplySize));
  } else if (length == 0) {
    // A simple reply is no answer to a READ here.
    const size_t size = ChunkHeaderSize(style_);
    EncodeNoneChunk(ReplyTo(request), absl::MakeSpan(queue_.Add(size), size));
  } else {
    Content(request, std::move(payload));
  }
}

// "Don't fragment" asks for one chunk, and for data where any of it is.
void ReplyWriter::Content(const Request& request, Buffer payload) {
  const size_t length = static_cast<size_t>(request.length);
  const uint8_t* data = payload.data();
  std::vector<ContentRun> runs;
  if ((request.flags & kCommandFlagDf) != 0) {
    runs.push_back({length, false});
  } else {
    runs = FindZeroRuns(request.offset, {data, length});
  }
  uint64_t offset = request.offset;
  for (const ContentRun& run : runs) {
    ContentChunk(ReplyTo(request), offset, run, &run == &runs.back(), data, payload);
    offset += run.length;
    data += run.length;
  }
}

void ReplyWriter::ContentChunk(const ChunkedReply& reply, uint64_t offset, const ContentRun& run, bool last,
                               const uint8_t* data, const Buffer& payload) {
  const uint16_t flags = last ? kReplyFlagDone : 0;
  const size_t size = ChunkHeaderSize(style_) + (run.zero ? kOffsetHoleSize : kOffsetDataSize);
  const size_t data_size = run.zero ? 0 : run.length;
  const Buffer owner = run.zero ? Buffer() : payload;
  uint8_t* const header =
      last ? queue_.AddLast(size, data, data_size, owner) : queue_.AddPart(size, data, data_size, owner);
  if (run.zero) {
    EncodeOffsetHole(reply, flags, offset, static_cast<uint32_t>(run.length), absl::MakeSpan(header, size));
  } else {
    EncodeOffsetData(reply, flags, offset, run.length, absl::MakeSpan(header, size));
  }
}

void ReplyWriter::Failure(const Request& request, const Refusal& refusal) {
  const bool fast_zero =
      request.command == Command::kWriteZeroes && (request.flags & kCommandFlagFastZero) != 0;
  const Error error = ErrorFromErrno(refusal.error, fast_zero);
  if (style_ == ReplyStyle::kSimple) return Simple(request, error);
  uint8_t chunk[kMaxErrorChunkSize];
  const ChunkedReply reply = ReplyTo(request);
  const size_t size =
      refusal.offset.has_value()
          ? EncodeErrorOffsetChunk(reply, error, refusal.message, *refusal.offset, absl::MakeSpan(chunk))
          : EncodeErrorChunk(reply, error, refusal.message, absl::MakeSpan(chunk));
  memcpy(queue_.Add(size), chunk, size);
}

size_t ReplyWriter::BlockStatusBytes(size_t extents) const {
  return ChunkHeaderSize(style_) + BlockStatusSize(style_) + extents * ExtentDescriptorSize(style_);
}

void ReplyWriter::BlockStatus(const Request& request, uint32_t context_id,
                              absl::Span<const StatusExtent> extents, bool last, Buffer buffer) {
  const size_t size = BlockStatusBytes(extents.size());
  uint8_t* at = buffer.data();
  at += EncodeBlockStatus(ReplyTo(request), last ? kReplyFlagDone : 0, context_id,
                          static_cast<uint32_t>(extents.size()), absl::MakeSpan(at, size));
  for (const StatusExtent& extent : extents) {
    at += EncodeExtentDescriptor(style_, {extent.length, extent.status},
                                 absl::MakeSpan(at, ExtentDescriptorSize(style_)));
  }
  if (last) {
    queue_.Add(0, std::move(buffer), size);
  } else {
    queue_.AddPart(0, buffer.data(), size, buffer);
  }
}

}  // namespace berth::nbd
