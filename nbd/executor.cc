#include "nbd/executor.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "image/io/blocking_pool.h"
#include "image/io/monotonic_clock.h"
#include "nbd/block_sizes.h"

namespace berth::nbd {
namespace {

// Sending as soon as this much is ready keeps large payloads in the processor's cache between the copy out
// of the image and the copy into the socket.
constexpr size_t kFlushBytes = size_t{256} << 10;

// A zero or a discard of more than a compact request can say is done piece by piece, so that a server that
// stops waits for one.
constexpr uint64_t kPieceBytes = uint64_t{4} << 30;

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

// "base:allocation metadata context".
uint32_t StatusOf(const Extent& extent) {
  uint32_t status = 0;
  if (!extent.allocated) status |= kStateHole;
  if (extent.zero) status |= kStateZero;
  return status;
}

// In the system's words, which are literals.
Refusal DeviceFailure(IoResult result) {
  const char* const words = strerrordesc_np(result.error);
  return {result.error, words == nullptr ? "" : words, {}};
}

// Resizes are rare, and one at a time by contract. Made with the first and never destroyed, as sessions may
// live until the process ends.
BlockingPool& ResizeThread() {
  static BlockingPool& pool = *new BlockingPool(1);
  return pool;
}

// What came of one, in plain types: a status stays on the thread that made it.
struct ResizeOutcome {
  int error = 0;
  std::string reason;
};

int ErrnoOfResize(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
      return EPERM;
    case absl::StatusCode::kResourceExhausted:
      return ENOSPC;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return EINVAL;
    case absl::StatusCode::kUnavailable:
      return ESHUTDOWN;
    default:
      return EIO;
  }
}

}  // namespace

Executor::Executor(Reactor& reactor, SessionChannels& channels, const Negotiated& negotiated,
                   Transport& transport, const FlightLimits& limits, absl::AnyInvocable<void()> on_sent)
    : reactor_(reactor),
      channels_(channels),
      channel_(*channels.block),
      negotiated_(negotiated),
      limits_(limits),
      observer_(negotiated.served->observer.get()),
      pool_(BufferPool::OfThisThread()),
      on_sent_(std::move(on_sent)),
      gate_(reactor),
      replies_(transport, gate_,
               [this](size_t replies) {
                 requests_in_flight_ -= replies;
                 on_sent_();
               }),
      writer_(negotiated.reply_style, replies_) {}

bool Executor::HasRoomFor(size_t bytes) const {
  const size_t requests = requests_in_flight_ + overdue_;
  if (requests == 0) return true;
  return requests < limits_.requests && bytes_held_ + bytes <= limits_.bytes;
}

void Executor::BeginBatch() {
  in_batch_ = true;
  batch_bytes_ = 0;
  if (observer_ != nullptr || HasDeadline()) batch_started_ = MonotonicNanoseconds();
}

void Executor::EndBatch() {
  in_batch_ = false;
  Flush();
}

void Executor::Refuse(const Request& request, const Refusal& refusal) {
  ++requests_in_flight_;
  Observe(request, IoResult::Error(refusal.error), batch_started_);
  writer_.Failure(request, refusal);
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

void Executor::BlockStatus(const Request& request, ContextMask contexts) {
  ++requests_in_flight_;
  Spawn(ServeBlockStatus(request, contexts, batch_started_, gate_.Enter()));
}

void Executor::Serve(const Request& request) {
  ++requests_in_flight_;
  if (request.length == 0 && request.command != Command::kFlush && request.command != Command::kResize) {
    return Finish(request, IoResult::Ok(), Buffer(), batch_started_);
  }
  switch (request.command) {
    case Command::kRead:
      return ServeRead(request);
    case Command::kFlush:
      return Run(request, channel_.Flush(), Buffer());
    case Command::kTrim:
      if ((request.flags & kCommandFlagFua) != 0 || request.length > kPieceBytes) {
        return Run(request, DiscardInPieces(request), Buffer());
      }
      return Run(request, channel_.Discard(request.offset, request.length), Buffer());
    case Command::kCache:
      return Run(request, channel_.Prefetch(request.offset, request.length), Buffer());
    case Command::kWriteZeroes:
      // A fast one goes as a whole: it takes no time, and what is refused must have changed nothing.
      if (request.length > kPieceBytes && (request.flags & kCommandFlagFastZero) == 0) {
        return Run(request, ZeroInPieces(request), Buffer());
      }
      return Run(request, channel_.Zero(request.offset, request.length, ZeroFlagsOf(request.flags)),
                 Buffer());
    case Command::kResize:
      return Spawn(Resize(request, gate_.Enter()));
    case Command::kBlockStatus:
    case Command::kWrite:
    case Command::kDisconnect:
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
  const bool timed = observer_ != nullptr || HasDeadline();
  const int64_t started = in_batch_ || !timed ? batch_started_ : MonotonicNanoseconds();
  Spawn(Await(request, std::move(task), std::move(buffer), started, gate_.Enter()));
}

Task<void> Executor::Await(Request request, Task<IoResult> task, Buffer buffer, int64_t started,
                           Gate::Holder) {
  Pending pending{request, started};
  if (HasDeadline()) Watch(pending);
  const IoResult result = co_await task;
  if (!pending.overdue) {
    if (HasDeadline()) Unwatch(pending);
    Finish(request, result, std::move(buffer), started);
    co_return;
  }
  buffer = Buffer();
  --overdue_;
  on_sent_();  // There is room again.
}

void Executor::Watch(Pending& pending) {
  pending.older = newest_;
  (newest_ == nullptr ? oldest_ : newest_->newer) = &pending;
  newest_ = &pending;
  if (!deadline_armed_) ArmDeadline();
}

void Executor::Unwatch(Pending& pending) {
  (pending.older == nullptr ? oldest_ : pending.older->newer) = pending.newer;
  (pending.newer == nullptr ? newest_ : pending.newer->older) = pending.older;
}

// For the oldest. It may be gone by then, so that a stream of quick requests costs a timer in a deadline's
// time.
void Executor::ArmDeadline() {
  deadline_armed_ = oldest_ != nullptr;
  if (!deadline_armed_) return;
  const absl::Duration age = absl::Nanoseconds(MonotonicNanoseconds() - oldest_->started);
  deadline_timer_ = Reactor::Timer(reactor_, std::max(limits_.deadline - age, absl::ZeroDuration()),
                                   [this] { EnforceDeadline(); });
}

void Executor::EnforceDeadline() {
  const int64_t now = MonotonicNanoseconds();
  while (oldest_ != nullptr && absl::Nanoseconds(now - oldest_->started) >= limits_.deadline) {
    Pending& pending = *oldest_;
    Unwatch(pending);
    pending.overdue = true;
    ++overdue_;
    Finish(pending.request, IoResult::Error(ETIMEDOUT), Buffer(), pending.started);
  }
  ArmDeadline();
}

Task<IoResult> Executor::DiscardInPieces(Request request) {
  for (uint64_t done = 0; done < request.length;) {
    if (stopping_ && done > 0) co_return IoResult::Error(ESHUTDOWN);
    const uint64_t piece = std::min(request.length - done, kPieceBytes);
    const IoResult result = co_await channel_.Discard(request.offset + done, piece);
    if (!result.ok()) co_return result;
    done += piece;
  }
  if ((request.flags & kCommandFlagFua) == 0) co_return IoResult::Ok();
  co_return co_await channel_.Flush();
}

Task<IoResult> Executor::ZeroInPieces(Request request) {
  const ZeroFlags flags = ZeroFlagsOf(request.flags & static_cast<uint16_t>(~kCommandFlagFua));
  for (uint64_t done = 0; done < request.length;) {
    if (stopping_ && done > 0) co_return IoResult::Error(ESHUTDOWN);
    const uint64_t piece = std::min(request.length - done, kPieceBytes);
    const IoResult result = co_await channel_.Zero(request.offset + done, piece, flags);
    if (!result.ok()) co_return result;
    done += piece;
  }
  if ((request.flags & kCommandFlagFua) == 0) co_return IoResult::Ok();
  co_return co_await channel_.Flush();
}

// A chunk for each context, one after the other, so that only one context's extents are held at a time.
Task<void> Executor::ServeBlockStatus(Request request, ContextMask contexts, int64_t started, Gate::Holder) {
  bytes_held_ += BlockStatusBytes();
  IoResult result = IoResult::Ok();
  for (size_t i = 0; contexts != 0 && result.ok(); ++i) {
    const ContextMask bit = ContextMask{1} << i;
    if ((contexts & bit) == 0) continue;
    contexts &= ~bit;
    result = co_await AnswerContext(request, i, contexts == 0);
  }
  bytes_held_ -= BlockStatusBytes();
  Observe(request, result, started);
  if (!result.ok()) writer_.Failure(request, DeviceFailure(result));
  Answered();
}

Task<IoResult> Executor::AnswerContext(Request request, size_t context, bool last) {
  std::vector<StatusExtent> extents;
  const IoResult result = co_await LookUp(request, context, &extents);
  if (!result.ok()) co_return result;
  assert(!extents.empty() && extents.size() <= kMaxExtents);
  if ((request.flags & kCommandFlagReqOne) != 0) extents.resize(1);
  Buffer buffer = pool_.Allocate(writer_.BlockStatusBytes(extents.size()), &bytes_held_);
  writer_.BlockStatus(request, negotiated_.contexts[context].id, extents, last, std::move(buffer));
  co_return IoResult::Ok();
}

Task<IoResult> Executor::LookUp(Request request, size_t context, std::vector<StatusExtent>* extents) {
  if (StatusChannel* const channel = channels_.contexts[context].get()) {
    co_return co_await channel->Extents(request.offset, request.length, extents);
  }
  std::vector<Extent> allocation;
  const IoResult result = co_await channel_.Extents(request.offset, request.length, &allocation);
  AlignExtents(negotiated_.block_sizes.minimum, &allocation);
  extents->reserve(allocation.size());
  for (const Extent& extent : allocation) extents->push_back({extent.length, StatusOf(extent)});
  co_return result;
}

// NBD_CMD_RESIZE.
Task<void> Executor::Resize(Request request, Gate::Holder) {
  const Export& served = *negotiated_.served;
  const uint64_t before = served.device->size();
  const auto resize = [&served, size = request.offset] {
    const absl::Status status = served.resize(size);
    return ResizeOutcome{ErrnoOfResize(status), std::string(status.message())};
  };
  const ResizeOutcome outcome = co_await ResizeThread().Run(reactor_, resize);
  if (outcome.error == 0) {
    if (request.offset < before) former_size_ = std::max(former_size_, before);
    writer_.Success(request);
  } else {
    const std::string text =
        absl::StrCat("a resize from ", before, " to ", request.offset, " bytes failed: ", outcome.reason);
    writer_.Failure(request, {outcome.error, text, {}});
  }
  Answered();
}

void Executor::Finish(const Request& request, IoResult result, Buffer payload, int64_t started) {
  Observe(request, result, started);
  if (!result.ok()) {
    writer_.Failure(request, DeviceFailure(result));
  } else if (request.command == Command::kRead) {
    writer_.Data(request, std::move(payload));
  } else {
    writer_.Success(request);
  }
  Answered();
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
