// Arbitrary bytes as every message that either side decodes: what is understood, encodes to the bytes it came
// from.
//
// The first byte chooses the message, and the headers' style with it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "nbd/wire.h"
#include "tests/fuzz/require.h"

namespace berth::nbd {
namespace {

void RequireSame(absl::Span<const uint8_t> in, absl::Span<const uint8_t> out) {
  Require(in.size() >= out.size() && std::equal(out.begin(), out.end(), in.begin()), "it is not what it was");
}

template <typename Message, typename Decode, typename Encode>
void RoundTrip(absl::Span<const uint8_t> in, size_t size, Decode decode, Encode encode) {
  Message message;
  if (in.size() < size || !decode(in, &message)) return;
  std::vector<uint8_t> out(size);
  encode(message, absl::MakeSpan(out));
  RequireSame(in, out);
}

void Handshakes(absl::Span<const uint8_t> in) {
  RoundTrip<Greeting>(in, kGreetingSize, DecodeGreeting, EncodeGreeting);
  RoundTrip<OptionHeader>(in, kOptionHeaderSize, DecodeOptionHeader, EncodeOptionHeader);
  RoundTrip<OptionReplyHeader>(in, kOptionReplyHeaderSize, DecodeOptionReplyHeader, EncodeOptionReplyHeader);
}

void Requests(absl::Span<const uint8_t> in) {
  RoundTrip<Request>(in, kRequestSize, DecodeRequest, EncodeRequest);
  RoundTrip<Request>(in, kExtendedRequestSize, DecodeExtendedRequest, EncodeExtendedRequest);
  RoundTrip<SimpleReply>(in, kSimpleReplySize, DecodeSimpleReply, EncodeSimpleReply);
}

void ErrorChunk(ReplyStyle style, const ChunkHeader& header, absl::Span<const uint8_t> payload) {
  ErrorPayload error;
  if (!DecodeErrorPayload(header.type, payload, &error)) return;
  Require(error.error != Error::kNone && error.message.size() + 6 <= payload.size(), "an error's text");
  // What is longer than Berth itself sends is cut.
  if (error.message.size() > kMaxErrorMessage) return;
  uint8_t out[kMaxErrorChunkSize];
  const ChunkedReply reply = {style, header.cookie, header.offset};
  const size_t size =
      header.type == ChunkType::kErrorOffset
          ? EncodeErrorOffsetChunk(reply, error.error, error.message, error.offset, absl::MakeSpan(out))
          : EncodeErrorChunk(reply, error.error, error.message, absl::MakeSpan(out));
  RequireSame(payload, absl::MakeSpan(out).subspan(ChunkHeaderSize(style), size - ChunkHeaderSize(style)));
}

void BlockStatusChunk(ReplyStyle style, absl::Span<const uint8_t> payload) {
  BlockStatusPayload status;
  if (!DecodeBlockStatus(style, payload, &status)) return;
  const size_t each = ExtentDescriptorSize(style);
  Require(!status.descriptors.empty() && status.descriptors.size() % each == 0, "whole descriptors");
  for (absl::Span<const uint8_t> rest = status.descriptors; !rest.empty(); rest.remove_prefix(each)) {
    ExtentDescriptor extent;
    DecodeExtentDescriptor(style, rest, &extent);
    uint8_t out[16];
    RequireSame(rest, absl::MakeSpan(out).first(EncodeExtentDescriptor(style, extent, absl::MakeSpan(out))));
  }
}

void Chunks(ReplyStyle style, absl::Span<const uint8_t> in) {
  const size_t size = ChunkHeaderSize(style);
  ChunkHeader header;
  if (in.size() < size || !DecodeChunkHeader(style, in, &header)) return;
  uint8_t out[kExtendedChunkHeaderSize];
  EncodeChunkHeader(style, header, absl::MakeSpan(out));
  RequireSame(in, absl::MakeSpan(out).first(size));
  const absl::Span<const uint8_t> payload = in.subspan(size);
  ErrorChunk(style, header, payload);
  BlockStatusChunk(style, payload);
  if (payload.size() < kOffsetHoleSize) return;
  OffsetHole hole;
  DecodeOffsetHole(payload, &hole);
  uint8_t chunk[kMaxOffsetHoleSize];
  EncodeOffsetHole({style, 0, 0}, 0, hole.offset, hole.length, absl::MakeSpan(chunk));
  RequireSame(payload, absl::MakeSpan(chunk).subspan(size, kOffsetHoleSize));
}

}  // namespace
}  // namespace berth::nbd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using berth::nbd::ReplyStyle;
  if (size == 0) return 0;
  const absl::Span<const uint8_t> in(data + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      berth::nbd::Handshakes(in);
      break;
    case 1:
      berth::nbd::Requests(in);
      break;
    case 2:
      berth::nbd::Chunks(ReplyStyle::kStructured, in);
      break;
    default:
      berth::nbd::Chunks(ReplyStyle::kExtended, in);
      break;
  }
  return 0;
}
