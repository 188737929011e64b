#include "nbd/executor.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "image/io/monotonic_clock.h"

namespace berth::nbd {
namespace {

// Sending as soon as this much is ready keeps large payloads in the processor's cache between the copy out
// of the image and the copy into the socket.
constexpr size_t kFlushBytes = size_t{256} << 10;

bool OperationOf(Command command, Operation* operation) {
  switch (command) {
    case Command::kRead:
      *operation = Operation::kRead;
      return true;
    case Command::kWrite:
      *operation = Operation::kWrite;
      return true;
    case Command::kFlush:
      *operation = Operation::kFlush;
      return true;
    case Command::kTrim:
      *operation = Operation::kDiscard;
      return true;
    case Command::kCache:
      *operation = Operation::kPrefetch;
      return true;
    case Command::kWriteZeroes:
      *operation = Operation::kZero;
      return true;
    case Command::kBlockStatus:
      *operation = Operation::kExtents;
      return true;
    case Command::kDisconnect:
    case Command::kResize:
      break;
  }
  return false;
}

ZeroFlags ZeroFlagsOf(uint16_t command_flags) {
  ZeroFlags flags = ZeroFlags::kNone;
  if ((command_flags & kCommandFlagFua) != 0) flags = flags | ZeroFlags::kFua;
  if ((command_flags & kCommandFlagNoHole) != 0) flags = flags | ZeroFlags::kNoUnmap;
  if ((command_flags & kCommandFlagFastZero) != 0) flags = flags | ZeroFlags::kFastOnly;
  return flags;
}

ExtentDescriptor DescriptorOf(const Extent& extent) {
  uint32_t status = 0;
  if (!extent.allocated) status |= kStateHole;
  if (extent.zero) status |= kStateZero;
  return {extent.length, status};
}

}  // namespace

Executor::Executor(Reactor& reactor, BlockChannel& channel, const Negotiated& negotiated,
                   Transport& transport, const FlightLimits& limits, absl::AnyInvocable<void()> on_sent)
    : reactor_(reactor),
      channel_(channel),
      negotiated_(negotiated),
      limits_(limits),
      observer_(negotiated.served->observer.get()),
      pool_(BufferPool::OfThisThread()),
      on_sent_(std::move(on_sent)),
      gate_(reactor),
      replies_(transport, gate_, [this](size_t replies) {
        requests_in_flight_ -= replies;
        on_sent_();
      }) {}

bool Executor::HasRoomFor(size_t bytes) const {
  if (requests_in_flight_ == 0) return true;
  return requests_in_flight_ < limits_.requests && bytes_held_ + bytes <= limits_.bytes;
}

void Executor::BeginBatch() {
  in_batch_ = true;
  batch_bytes_ = 0;
  if (observer_ != nullptr) batch_started_ = MonotonicNanoseconds();
}

void Executor::EndBatch() {
  in_batch_ = false;
  Flush();
}

void Executor::Refuse(const Request& request, const Refusal& refusal) {
  ++requests_in_flight_;
  Observe(request, IoResult::Error(refusal.error), batch_started_);
  AnswerError(request, refusal);
  Answered();
}

void Executor::Write(const Request& request, absl::Span<const uint8_t> data, Buffer owner) {
  ++requests_in_flight_;
  batch_bytes_ += data.size();
  if (data.empty()) return Finish(request, IoResult::Ok(), Buffer(), batch_started_);
  const bool fua = (request.flags & kCommandFlagFua) != 0;
  Run(request, channel_.Write(request.offset, data, fua ? WriteFlags::kFua : WriteFlags::kNone),
      std::move(owner));
}

void Executor::Serve(const Request& request) {
  ++requests_in_flight_;
  if (request.length == 0 && request.command != Command::kFlush) {
    return Finish(request, IoResult::Ok(), Buffer(), batch_started_);
  }
  switch (request.command) {
    case Command::kRead:
      return ServeRead(request);
    case Command::kFlush:
      return Run(request, channel_.Flush(), Buffer());
    case Command::kTrim:
      if ((request.flags & kCommandFlagFua) != 0) {
        return Run(request, DiscardAndFlush(request.offset, request.length), Buffer());
      }
      return Run(request, channel_.Discard(request.offset, request.length), Buffer());
    case Command::kCache:
      return Run(request, channel_.Prefetch(request.offset, request.length), Buffer());
    case Command::kWriteZeroes:
      return Run(request, channel_.Zero(request.offset, request.length, ZeroFlagsOf(request.flags)),
                 Buffer());
    case Command::kBlockStatus:
      return Spawn(ServeBlockStatus(request, batch_started_, gate_.Enter()));
    case Command::kWrite:
    case Command::kDisconnect:
    case Command::kResize:
      break;
  }
  assert(false);  // CheckRequest() lets nothing else pass.
}

void Executor::ServeRead(const Request& request) {
  const size_t length = static_cast<size_t>(request.length);
  batch_bytes_ += length;
  Buffer payload = pool_.Allocate(length, &bytes_held_);
  uint8_t* const data = payload.data();
  Run(request, channel_.Read(request.offset, absl::MakeSpan(data, length)), std::move(payload));
}

void Executor::Run(const Request& request, Task<IoResult> task, Buffer buffer) {
  if (task.await_ready()) {
    Finish(request, task.await_resume(), std::move(buffer), batch_started_);
    return;
  }
  const int64_t started = in_batch_ || observer_ == nullptr ? batch_started_ : MonotonicNanoseconds();
  Spawn(Await(request, std::move(task), std::move(buffer), started, gate_.Enter()));
}

Task<void> Executor::Await(Request request, Task<IoResult> task, Buffer buffer, int64_t started,
                           Gate::Holder) {
  const IoResult result = co_await task;
  Finish(request, result, std::move(buffer), started);
}

Task<IoResult> Executor::DiscardAndFlush(uint64_t offset, uint64_t length) {
  const IoResult discarded = co_await channel_.Discard(offset, length);
  if (!discarded.ok()) co_return discarded;
  co_return co_await channel_.Flush();
}

Task<void> Executor::ServeBlockStatus(Request request, int64_t started, Gate::Holder) {
  std::vector<Extent> extents;
  bytes_held_ += kBlockStatusBytes;
  const IoResult result = co_await channel_.Extents(request.offset, request.length, &extents);
  bytes_held_ -= kBlockStatusBytes;
  if (!result.ok()) {
    Finish(request, result, Buffer(), started);
    co_return;
  }
  Observe(request, result, started);
  AnswerBlockStatus(request, extents);
  Answered();
}

void Executor::Finish(const Request& request, IoResult result, Buffer payload, int64_t started) {
  Observe(request, result, started);
  if (result.ok()) {
    AnswerSuccess(request, std::move(payload));
  } else {
    AnswerError(request, {result.error, "", {}});
  }
  Answered();
}

ChunkedReply Executor::ReplyTo(const Request& request) const {
  return {negotiated_.reply_style, request.cookie, request.offset};
}

// One chunk a read. Holes as chunks of their own would be written here.
void Executor::AnswerSuccess(const Request& request, Buffer payload) {
  const uint64_t cookie = request.cookie;
  if (request.command != Command::kRead) {
    EncodeSimpleReply({Error::kNone, cookie},
                      absl::MakeSpan(replies_.Add(kSimpleReplySize), kSimpleReplySize));
    return;
  }
  const size_t length = static_cast<size_t>(request.length);
  if (negotiated_.reply_style == ReplyStyle::kSimple) {
    uint8_t* const header = replies_.Add(kSimpleReplySize, std::move(payload), length);
    EncodeSimpleReply({Error::kNone, cookie}, absl::MakeSpan(header, kSimpleReplySize));
  } else if (length == 0) {
    const size_t size = ChunkHeaderSize(negotiated_.reply_style);
    EncodeNoneChunk(ReplyTo(request), absl::MakeSpan(replies_.Add(size), size));
  } else {
    const size_t size = ChunkHeaderSize(negotiated_.reply_style) + kOffsetDataSize;
    uint8_t* const header = replies_.Add(size, std::move(payload), length);
    EncodeOffsetData(ReplyTo(request), kReplyFlagDone, request.offset, length, absl::MakeSpan(header, size));
  }
}

void Executor::AnswerError(const Request& request, const Refusal& refusal) {
  const bool fast_zero =
      request.command == Command::kWriteZeroes && (request.flags & kCommandFlagFastZero) != 0;
  const Error error = ErrorFromErrno(refusal.error, fast_zero);
  if (negotiated_.reply_style == ReplyStyle::kSimple) {
    EncodeSimpleReply({error, request.cookie},
                      absl::MakeSpan(replies_.Add(kSimpleReplySize), kSimpleReplySize));
    return;
  }
  uint8_t chunk[kMaxErrorChunkSize];
  const size_t size = refusal.offset.has_value()
                          ? EncodeErrorOffsetChunk(ReplyTo(request), error, refusal.message, *refusal.offset,
                                                   absl::MakeSpan(chunk))
                          : EncodeErrorChunk(ReplyTo(request), error, refusal.message, absl::MakeSpan(chunk));
  memcpy(replies_.Add(size), chunk, size);
}

void Executor::AnswerBlockStatus(const Request& request, const std::vector<Extent>& extents) {
  assert(!extents.empty() && extents.size() <= kMaxExtents);
  const bool one = (request.flags & kCommandFlagReqOne) != 0;
  const size_t count = one ? 1 : extents.size();
  const ReplyStyle style = negotiated_.reply_style;
  const size_t chunk_size =
      ChunkHeaderSize(style) + BlockStatusSize(style) + count * ExtentDescriptorSize(style);
  const size_t size = chunk_size * negotiated_.contexts.size();
  Buffer payload = pool_.Allocate(size, &bytes_held_);
  uint8_t* at = payload.data();
  for (const MetaContext& context : negotiated_.contexts) {
    const uint16_t flags = &context == &negotiated_.contexts.back() ? kReplyFlagDone : 0;
    at += EncodeBlockStatus(ReplyTo(request), flags, context.id, static_cast<uint32_t>(count),
                            absl::MakeSpan(at, chunk_size));
    for (size_t i = 0; i < count; ++i) {
      at += EncodeExtentDescriptor(style, DescriptorOf(extents[i]),
                                   absl::MakeSpan(at, ExtentDescriptorSize(style)));
    }
  }
  replies_.Add(0, std::move(payload), size);
}

void Executor::Observe(const Request& request, IoResult result, int64_t started) {
  Operation operation;
  if (observer_ == nullptr || !OperationOf(request.command, &operation)) return;
  completions_.push_back({operation, request.length, started, result});
}

void Executor::Answered() {
  if (in_batch_) {
    if (replies_.collected_bytes() >= kFlushBytes) Flush();
  } else if (!flush_scheduled_) {
    flush_scheduled_ = true;
    Spawn(FlushAtEndOfTurn(gate_.Enter()));
  }
}

Task<void> Executor::FlushAtEndOfTurn(Gate::Holder) {
  co_await reactor_.Yield();
  flush_scheduled_ = false;
  Flush();
}

void Executor::Flush() {
  if (!completions_.empty()) {
    const int64_t now = MonotonicNanoseconds();
    for (const Completion& completion : completions_) {
      observer_->Completed(completion.operation, completion.bytes,
                           absl::Nanoseconds(now - completion.started), completion.result);
    }
    completions_.clear();
  }
  replies_.Flush();
}

}  // namespace berth::nbd
