#include "nbd/client/reply_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/block/extent.h"
#include "nbd/client/option_reply.h"

namespace berth::nbd {
namespace {

constexpr size_t kMaxErrorSize =
    14 + kMaxStringSize;                    // NBD_REPLY_TYPE_ERROR_OFFSET with the longest message.
constexpr uint32_t kMaxErrorChunks = 1024;  // Of a reply.

absl::Status Ended(int result, bool within_reply) {
  const char* const where = within_reply ? " in the middle of a reply" : "";
  return absl::UnavailableError(result == 0
                                    ? absl::StrCat("the server closed the connection", where)
                                    : absl::StrCat("the connection broke", where, ": ", strerror(-result)));
}

std::string Range(uint64_t offset, uint64_t length) { return absl::StrCat(length, " bytes at ", offset); }

absl::Status WrongLength(const ChunkHeader& header) {
  return Violation(absl::StrCat("a chunk of type ", static_cast<uint16_t>(header.type), " has a payload of ",
                                header.length, " bytes"));
}

absl::Status CoverageError(ReadCoverage::Outcome outcome, const PendingRequest& request, uint64_t offset,
                           uint64_t length) {
  switch (outcome) {
    case ReadCoverage::Outcome::kAdded:
      return absl::OkStatus();
    case ReadCoverage::Outcome::kOutside:
      return Violation(absl::StrCat("a read of ", Range(request.offset, request.length), " is answered with ",
                                    Range(offset, length)));
    case ReadCoverage::Outcome::kOverlaps:
      return Violation(absl::StrCat("of ", Range(offset, length), " some are answered twice"));
    case ReadCoverage::Outcome::kTooScattered:
      break;
  }
  return Violation(absl::StrCat("a read of ", Range(request.offset, request.length),
                                " is answered in more than ", ReadCoverage::kMaxPieces, " scattered pieces"));
}

// What a reply without an error must have brought.
absl::Status CheckComplete(const PendingRequest& request) {
  if (request.error != Error::kNone) return absl::OkStatus();
  if (request.command == Command::kRead && !request.coverage.complete()) {
    return Violation(absl::StrCat("of a read of ", Range(request.offset, request.length), " only ",
                                  request.coverage.covered(), " are answered"));
  }
  if (request.command == Command::kBlockStatus && request.status.size() != request.context_ids.size()) {
    return Violation(absl::StrCat("a block status is answered for ", request.status.size(), " of ",
                                  request.context_ids.size(), " contexts"));
  }
  return absl::OkStatus();
}

}  // namespace

ReplyReader::ReplyReader(Transport& transport, ReplyStyle style,
                         absl::AnyInvocable<PendingRequest*(uint64_t)> find)
    : stream_(transport), style_(style), find_(std::move(find)) {}

Task<absl::StatusOr<PendingRequest*>> ReplyReader::Next() {
  finished_ = nullptr;
  while (finished_ == nullptr) {
    const bool within = !stream_.bytes().empty();
    const int result = co_await stream_.Need(sizeof(uint32_t));
    if (result <= 0) co_return Ended(result, within || !stream_.bytes().empty());
    const uint32_t magic = Load32(stream_.bytes().data());
    const bool simple = magic == kSimpleReplyMagic && style_ != ReplyStyle::kExtended;
    const bool chunk = (magic == kStructuredReplyMagic && style_ == ReplyStyle::kStructured) ||
                       (magic == kExtendedReplyMagic && style_ == ReplyStyle::kExtended);
    if (!simple && !chunk) {
      co_return Violation(absl::StrCat("a reply begins with 0x", absl::Hex(magic, absl::kZeroPad8),
                                       ", which was not agreed on"));
    }
    absl::Status status;
    if (simple) {
      status = co_await ReceiveSimple();
    } else {
      status = co_await ReceiveChunk();
    }
    if (!status.ok()) co_return status;
  }
  co_return finished_;
}

Task<absl::Status> ReplyReader::ReceiveSimple() {
  int result = co_await stream_.Need(kSimpleReplySize);
  if (result <= 0) co_return Ended(result, true);
  SimpleReply reply;
  if (!DecodeSimpleReply(stream_.bytes(), &reply)) co_return Violation("a reply has a wrong magic number");
  stream_.Take(kSimpleReplySize);
  PendingRequest* const request = find_(reply.cookie);
  if (request == nullptr) {
    co_return Violation(absl::StrCat("a reply has the cookie ", reply.cookie, " of no request"));
  }
  const bool failed = reply.error != Error::kNone;
  // "if the request is NBD_CMD_READ", or has a payload in its answer.
  if (style_ == ReplyStyle::kStructured &&
      (request->command == Command::kRead || (request->command == Command::kBlockStatus && !failed) ||
       request->error_chunks > 0 || !request->status.empty())) {
    co_return Violation("a simple reply stands in the place of a structured one");
  }
  if (!failed && request->command == Command::kRead) {
    result = co_await stream_.ReadInto(request->data);
    if (result <= 0) co_return Ended(result, true);
  }
  request->error = reply.error;
  finished_ = request;
  co_return absl::OkStatus();
}

Task<absl::Status> ReplyReader::ReceiveChunk() {
  const size_t size = ChunkHeaderSize(style_);
  const int result = co_await stream_.Need(size);
  if (result <= 0) co_return Ended(result, true);
  ChunkHeader header;
  if (!DecodeChunkHeader(style_, stream_.bytes(), &header)) {
    co_return Violation("a reply has a wrong magic number");
  }
  stream_.Take(size);
  PendingRequest* const request = find_(header.cookie);
  if (request == nullptr) {
    co_return Violation(absl::StrCat("a chunk has the cookie ", header.cookie, " of no request"));
  }
  if (style_ == ReplyStyle::kExtended && header.offset != request->offset) {
    co_return Violation(
        absl::StrCat("a chunk repeats the offset ", header.offset, " of a request at ", request->offset));
  }
  absl::Status status = co_await ReceivePayload(*request, header);
  if (!status.ok()) co_return status;
  if ((header.flags & kReplyFlagDone) == 0) co_return absl::OkStatus();
  finished_ = request;
  co_return CheckComplete(*request);
}

Task<absl::Status> ReplyReader::ReceivePayload(PendingRequest& request, const ChunkHeader& header) {
  const auto type = static_cast<uint16_t>(header.type);
  if ((type & kChunkErrorBit) != 0) {
    const bool known = header.type == ChunkType::kError || header.type == ChunkType::kErrorOffset;
    // Of a type that we do not know, more may follow the message.
    if (header.length > (known ? kMaxErrorSize : ReceiveStream::kCapacity)) co_return WrongLength(header);
    co_return co_await ReceiveError(request, header);
  }
  const Command expected = header.type == ChunkType::kOffsetData || header.type == ChunkType::kOffsetHole
                               ? Command::kRead
                               : Command::kBlockStatus;
  const ChunkType block_status =
      style_ == ReplyStyle::kExtended ? ChunkType::kBlockStatusExt : ChunkType::kBlockStatus;
  const bool known = header.type == ChunkType::kNone || header.type == ChunkType::kOffsetData ||
                     header.type == ChunkType::kOffsetHole || header.type == block_status;
  if (!known || (header.type != ChunkType::kNone && request.command != expected)) {
    co_return Violation(absl::StrCat("a chunk of type ", type, " answers a request of type ",
                                     static_cast<uint16_t>(request.command)));
  }
  switch (header.type) {
    case ChunkType::kOffsetData:
      if (header.length <= kOffsetDataSize) co_return WrongLength(header);
      co_return co_await ReceiveData(request, header.length - kOffsetDataSize);
    case ChunkType::kOffsetHole:
      if (header.length != kOffsetHoleSize) co_return WrongLength(header);
      co_return co_await ReceiveHole(request);
    case ChunkType::kNone:
      if (header.length != 0) co_return WrongLength(header);
      if ((header.flags & kReplyFlagDone) == 0) {
        co_return Violation("a chunk of type 0 is not the last of its reply");
      }
      co_return absl::OkStatus();
    default:
      co_return co_await ReceiveBlockStatus(request, header.length);
  }
}

Task<absl::Status> ReplyReader::ReceiveData(PendingRequest& request, uint64_t length) {
  int result = co_await stream_.Need(kOffsetDataSize);
  if (result <= 0) co_return Ended(result, true);
  const uint64_t offset = Load64(stream_.bytes().data());
  stream_.Take(kOffsetDataSize);
  // Before the first byte is written.
  absl::Status status = CoverageError(request.coverage.Add(offset, length), request, offset, length);
  if (!status.ok()) co_return status;
  result = co_await stream_.ReadInto(request.data.subspan(offset - request.offset, length));
  if (result <= 0) co_return Ended(result, true);
  co_return absl::OkStatus();
}

Task<absl::Status> ReplyReader::ReceiveHole(PendingRequest& request) {
  const int result = co_await stream_.Need(kOffsetHoleSize);
  if (result <= 0) co_return Ended(result, true);
  OffsetHole hole;
  DecodeOffsetHole(stream_.bytes(), &hole);
  stream_.Take(kOffsetHoleSize);
  absl::Status status =
      CoverageError(request.coverage.Add(hole.offset, hole.length), request, hole.offset, hole.length);
  if (status.ok()) memset(&request.data[hole.offset - request.offset], 0, hole.length);
  co_return status;
}

Task<absl::Status> ReplyReader::ReceiveBlockStatus(PendingRequest& request, uint64_t length) {
  if (length > BlockStatusSize(style_) + kMaxExtentsPerChunk * ExtentDescriptorSize(style_)) {
    co_return Violation(absl::StrCat("a block status has ", length, " bytes, more than 2^20 extents"));
  }
  scratch_.resize(length);
  const int result = co_await stream_.ReadInto(absl::MakeSpan(scratch_));
  if (result <= 0) co_return Ended(result, true);
  BlockStatusPayload payload;
  if (!DecodeBlockStatus(style_, scratch_, &payload)) {
    co_return Violation(absl::StrCat("a block status of ", length, " bytes is malformed"));
  }
  const auto& ids = request.context_ids;
  if (std::find(ids.begin(), ids.end(), payload.context_id) == ids.end()) {
    co_return Violation(absl::StrCat("a block status is about the context ", payload.context_id,
                                     ", which was not asked for"));
  }
  for (const ContextStatus& other : request.status) {
    if (other.context_id == payload.context_id) {
      co_return Violation(absl::StrCat("the context ", payload.context_id, " is answered twice"));
    }
  }
  ContextStatus& status = request.status.emplace_back();
  status.context_id = payload.context_id;
  absl::Status checked = AddDescriptors(request, payload.descriptors, &status);
  if (scratch_.capacity() > ReceiveStream::kCapacity) scratch_ = {};
  co_return checked;
}

absl::Status ReplyReader::AddDescriptors(const PendingRequest& request, absl::Span<const uint8_t> descriptors,
                                         ContextStatus* status) const {
  const size_t size = ExtentDescriptorSize(style_);
  const bool one = (request.flags & kCommandFlagReqOne) != 0;
  if (one && descriptors.size() != size) {
    return Violation("a block status has several extents, where one was asked for");
  }
  uint64_t before = 0;  // Length of the extents before this one.
  while (!descriptors.empty()) {
    ExtentDescriptor extent;
    DecodeExtentDescriptor(style_, descriptors, &extent);
    descriptors.remove_prefix(size);
    if (extent.length == 0) return Violation("an extent of a block status is empty");
    if ((one && extent.length > request.length) ||
        (!descriptors.empty() && extent.length >= request.length - before)) {
      return Violation(absl::StrCat("a block status of ", Range(request.offset, request.length),
                                    " goes on behind its end"));
    }
    before += extent.length;
    if (status->extents.size() < kMaxExtents) status->extents.push_back(extent);
  }
  return absl::OkStatus();
}

Task<absl::Status> ReplyReader::ReceiveError(PendingRequest& request, const ChunkHeader& header) {
  const auto length = static_cast<size_t>(header.length);
  const int result = co_await stream_.Need(length);
  if (result <= 0) co_return Ended(result, true);
  ErrorPayload payload;
  if (!DecodeErrorPayload(header.type, stream_.bytes().first(length), &payload)) {
    co_return Violation(absl::StrCat("an error chunk of ", length, " bytes is malformed"));
  }
  if (++request.error_chunks > kMaxErrorChunks) {
    co_return Violation(absl::StrCat("a reply has more than ", kMaxErrorChunks, " errors"));
  }
  const bool has_offset = header.type == ChunkType::kErrorOffset;
  if (has_offset && (payload.offset < request.offset || payload.offset - request.offset >= request.length)) {
    co_return Violation(absl::StrCat("an error at ", payload.offset, " is not within a request of ",
                                     Range(request.offset, request.length)));
  }
  if (request.error == Error::kNone) {
    request.error = payload.error;
    request.message = std::string(payload.message.substr(0, kMaxStringSize));
    if (has_offset) request.error_offset = payload.offset;
  }
  stream_.Take(length);
  co_return absl::OkStatus();
}

}  // namespace berth::nbd
