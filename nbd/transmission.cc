#include "nbd/transmission.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "nbd/capabilities.h"

namespace berth::nbd {
namespace {

// Smaller payloads are received among the other requests, which costs no system call of their own.
constexpr size_t kLargePayload = size_t{32} << 10;

// How much of what follows a large payload is received with it: the next header, and little of the next
// payload, as that part is copied.
constexpr size_t kLookAhead = 4096;
constexpr int kLargeWritesExpected = 8;

// A connection that leaves more memory than this behind gives it back when it falls idle.
constexpr size_t kWorthGivingBack = size_t{64} << 10;

// So much payload is moved before others on the reactor get their turn.
constexpr size_t kTurnBytes = size_t{4} << 20;

// A refused payload up to this size is read past; more is an attack. "Size constraints": up to 2^25 is not.
// "Request message" of the extended ones: more than the largest payload ends the connection.
uint64_t MaxSkippedPayload(ReplyStyle style) {
  return style == ReplyStyle::kExtended ? kMaxPayload : uint64_t{2} * kMaxPayload;
}

}  // namespace

Transmission* Transmission::Start(Reactor& reactor, std::unique_ptr<Transport> transport,
                                  Negotiated negotiated, SessionChannels channels,
                                  const SessionOptions& options,
                                  absl::AnyInvocable<void(absl::Status)> on_end) {
  auto* transmission = new Transmission(reactor, std::move(transport), std::move(negotiated),
                                        std::move(channels), options, std::move(on_end));
  // The first turn is a later one, so that `on_end` is not called before the caller has the pointer.
  Spawn([](Transmission* owned) -> Task<void> {
    co_await owned->reactor_.Yield();
    co_await owned->Run();
    owned->End();
  }(transmission));
  return transmission;
}

Transmission::Transmission(Reactor& reactor, std::unique_ptr<Transport> transport, Negotiated negotiated,
                           SessionChannels channels, const SessionOptions& options,
                           absl::AnyInvocable<void(absl::Status)> on_end)
    : reactor_(reactor),
      negotiated_(std::move(negotiated)),
      options_(options),
      on_end_(std::move(on_end)),
      channels_(std::move(channels)),
      transport_(std::move(transport)),
      executor_(reactor, channels_, negotiated_, *transport_,
                {options.max_bytes_in_flight, options.max_requests_in_flight, options.request_deadline},
                [this] { OnSent(); }),
      buffer_(executor_.pool(), executor_.bytes_held()),
      request_size_(RequestSize(negotiated_.reply_style)) {
  bounds_.reply_style = negotiated_.reply_style;
  bounds_.minimum_block = negotiated_.block_sizes.minimum;
  bounds_.maximum_payload = negotiated_.block_sizes.maximum_payload;
  bounds_.has_contexts = !negotiated_.contexts.empty();
  bounds_.transmission_flags =
      TransmissionFlags(*negotiated_.served, negotiated_.reply_style, bounds_.has_contexts);
}

void Transmission::End() {
  absl::AnyInvocable<void(absl::Status)> on_end = std::move(on_end_);
  absl::Status reason = std::move(reason_);
  delete this;
  on_end(std::move(reason));
}

// ---- The loop.

// `co_await Room()` waits until a reply has left since the last look at the requests.
auto Transmission::Room() {
  struct Awaiter {
    Transmission* transmission;
    bool await_ready() const noexcept { return transmission->sent_; }
    void await_suspend(std::coroutine_handle<> waiter) const { transmission->waits_for_room_ = waiter; }
    void await_resume() const noexcept {}
  };
  return Awaiter{this};
}

Task<void> Transmission::Run() {
  while (true) {
    const Next next = ServeReceived();
    if (next == Next::kClose) break;
    if (next == Next::kYield) {
      co_await reactor_.Yield();
      continue;
    }
    // Where everything is answered and the device does not let go of the memory, what arrives has to be
    // refused, for which it has to be read.
    const bool has_room =
        executor_.requests_in_flight() == 0 || executor_.HasRoomFor(buffer_.NeededForSpace());
    if (next == Next::kRoom || !has_room) {
      co_await Room();
      continue;
    }
    if (shrink_) ShrinkToIdle();
    const Target target = PrepareReceive();
    const absl::Span<const iovec> vectors(target.vectors.data(), target.count);
    int result;
    if (MaySleep()) {
      result = co_await transport_->Receive(vectors);
    } else {
      // A client that sends without end must not keep the reactor from the deadline.
      co_await reactor_.Yield();
      result = transport_->TryReceive(vectors);
    }
    if (!Received(target, result)) break;
  }
  ArmDeadline();
  co_await executor_.Drain();
}

Transmission::Next Transmission::ServeReceived() {
  sent_ = false;
  bounds_.size = ServedSize(*negotiated_.served, negotiated_.block_sizes);
  bounds_.former_size = executor_.former_size();
  bounds_.stopping = stopping_;
  executor_.BeginBatch();
  Next next = Next::kServe;
  while (next == Next::kServe) next = ServeNext();
  executor_.EndBatch();
  if (large_write_.has_value()) {
    large_writes_expected_ = kLargeWritesExpected;
  } else if (large_writes_expected_ > 0) {
    --large_writes_expected_;
  }
  return next;
}

Transmission::Next Transmission::ServeNext() {
  if (stopping_ && !options_.refuse_while_stopping) return Next::kClose;
  if (skipped_.has_value()) return Skip();
  if (large_write_.has_value()) {
    if (large_write_->missing() > 0) return Next::kReceive;
    const absl::Span<const uint8_t> data(large_write_->payload.data(), large_write_->received);
    const Request request = large_write_->request;
    Buffer payload = std::move(large_write_->payload);
    large_write_.reset();
    executor_.Write(request, data, std::move(payload));
    return Next::kServe;
  }
  if (buffer_.size() < request_size_) return Next::kReceive;
  if (executor_.batch_bytes() >= kTurnBytes) return Next::kYield;
  Request request;
  const bool decoded = negotiated_.reply_style == ReplyStyle::kExtended
                           ? DecodeExtendedRequest(buffer_.bytes(), &request)
                           : DecodeRequest(buffer_.bytes(), &request);
  if (!decoded) return Violation("a request without its magic number");
  if (request.command == Command::kDisconnect) return Next::kClose;
  return ServeRequest(request);
}

size_t Transmission::NeededFor(const Request& request) const {
  const size_t length = static_cast<size_t>(std::min<uint64_t>(request.length, kMaxPayload));
  if (request.command == Command::kRead) return BufferPool::CapacityFor(length);
  if (request.command == Command::kBlockStatus) return executor_.BlockStatusBytes();
  if (request.command == Command::kWrite && length >= kLargePayload) return BufferPool::CapacityFor(length);
  return 0;
}

Transmission::Next Transmission::ServeRequest(const Request& request) {
  if (!executor_.HasRoomFor(NeededFor(request))) {
    if (executor_.requests_in_flight() > 0) return Next::kRoom;
    return RefuseRequest(request, {ETIMEDOUT, "the device does not answer", {}});
  }
  const Refusal refusal = CheckRequest(request, bounds_);
  if (refusal) return RefuseRequest(request, refusal);
  if (request.command == Command::kWrite) return ServeWrite(request);
  if (request.command == Command::kBlockStatus) {
    if ((request.flags & kCommandFlagPayloadLen) != 0) return ServeBlockStatusPayload(request);
    buffer_.Consume(request_size_);
    executor_.BlockStatus(request, AllContexts());
    return Next::kServe;
  }
  buffer_.Consume(request_size_);
  executor_.Serve(request);
  return Next::kServe;
}

Transmission::Next Transmission::ServeWrite(const Request& request) {
  const size_t length = static_cast<size_t>(request.length);
  const size_t here = std::min(length, buffer_.size() - request_size_);
  if (here < length && length < kLargePayload) return Next::kReceive;
  buffer_.Consume(request_size_);
  const absl::Span<const uint8_t> data = buffer_.bytes().first(here);
  if (here == length) {
    Buffer pin = buffer_.Pin();
    buffer_.Consume(here);
    executor_.Write(request, data, std::move(pin));
    return Next::kServe;
  }
  large_write_ = {request, executor_.pool().Allocate(length, executor_.bytes_held()), here};
  memcpy(large_write_->payload.data(), data.data(), here);
  buffer_.Consume(here);
  return Next::kReceive;
}

// NBD_CMD_BLOCK_STATUS with a payload: the length that it is about, and the contexts.
Transmission::Next Transmission::ServeBlockStatusPayload(const Request& request) {
  const uint64_t ids = negotiated_.contexts.size();
  if (request.length < kBlockStatusQuerySize + kContextIdSize ||
      request.length > kBlockStatusQuerySize + ids * kContextIdSize || request.length % kContextIdSize != 0) {
    return RefuseRequest(request, {EINVAL, "a payload that is no length and a list of contexts", {}});
  }
  const size_t length = static_cast<size_t>(request.length);
  if (buffer_.size() < request_size_ + length) return Next::kReceive;
  const absl::Span<const uint8_t> payload = buffer_.bytes().subspan(request_size_, length);
  Request query = request;
  query.flags &= static_cast<uint16_t>(~kCommandFlagPayloadLen);
  query.length = Load64(payload.data());
  const ContextMask contexts = FindContexts(payload.subspan(kBlockStatusQuerySize));
  Refusal refusal = CheckRequest(query, bounds_);
  if (!refusal && contexts == 0) refusal = {EINVAL, "a context that is unknown, or there twice", {}};
  buffer_.Consume(request_size_ + length);
  if (refusal) {
    executor_.Refuse(query, refusal);
  } else {
    executor_.BlockStatus(query, contexts);
  }
  return Next::kServe;
}

ContextMask Transmission::AllContexts() const {
  return static_cast<ContextMask>((uint64_t{1} << negotiated_.contexts.size()) - 1);
}

ContextMask Transmission::FindContexts(absl::Span<const uint8_t> ids) const {
  ContextMask found = 0;
  for (; !ids.empty(); ids.remove_prefix(kContextIdSize)) {
    const uint32_t id = Load32(ids.data());
    ContextMask bit = 0;
    for (size_t i = 0; i < negotiated_.contexts.size(); ++i) {
      if (negotiated_.contexts[i].id == id) bit = ContextMask{1} << i;
    }
    if (bit == 0 || (found & bit) != 0) return 0;
    found |= bit;
  }
  return found;
}

Transmission::Next Transmission::RefuseRequest(const Request& request, const Refusal& refusal) {
  const uint64_t payload = PayloadLength(request, negotiated_.reply_style);
  if (payload > MaxSkippedPayload(negotiated_.reply_style)) {
    return Violation(absl::StrCat("a payload of ", payload, " bytes; 32 MiB are the most"));
  }
  if (payload > 0) skipped_ = {request, refusal, payload};
  buffer_.Consume(request_size_);
  if (skipped_.has_value()) return Skip();
  executor_.Refuse(request, refusal);
  return Next::kServe;
}

// The refusal is sent once the payload is read past: a client that still sends expects no answer yet.
Transmission::Next Transmission::Skip() {
  const size_t here = static_cast<size_t>(std::min<uint64_t>(skipped_->left, buffer_.size()));
  buffer_.Consume(here);
  skipped_->left -= here;
  if (skipped_->left > 0) return Next::kReceive;
  executor_.Refuse(skipped_->request, skipped_->refusal);
  skipped_.reset();
  return Next::kServe;
}

// ---- Receiving.

Transmission::Target Transmission::PrepareReceive() {
  Target target;
  if (large_write_.has_value()) {
    target.payload = large_write_->missing();
    target.vectors[target.count++] = {large_write_->payload.data() + large_write_->received, target.payload};
  }
  const absl::Span<uint8_t> space = buffer_.PrepareSpace();
  const size_t most = large_writes_expected_ > 0 ? std::min(space.size(), kLookAhead) : space.size();
  target.vectors[target.count++] = {space.data(), most};
  if (executor_.idle_cost() >= kWorthGivingBack) WatchIdleness();
  return target;
}

bool Transmission::Received(const Target& target, int result) {
  if (result == -ECANCELED || result == -EINTR) return true;
  if (result <= 0) {
    // While stopping there is no more to come for now, and that is the end.
    if (!(stopping_ && result == -EAGAIN)) reason_ = EndOfStream(result);
    return false;
  }
  received_in_period_ = true;
  const size_t count = static_cast<size_t>(result);
  const size_t payload = std::min(count, target.payload);
  if (large_write_.has_value()) large_write_->received += payload;
  buffer_.Commit(count - payload);
  return true;
}

Transmission::Next Transmission::Violation(absl::string_view message) {
  reason_ = absl::InvalidArgumentError(absl::StrCat("the client sent ", message));
  return Next::kClose;
}

absl::Status Transmission::EndOfStream(int result) const {
  if (stopping_) return absl::OkStatus();
  if (result < 0) return absl::ErrnoToStatus(-result, "receiving from the client");
  if (buffer_.size() == 0 && !large_write_.has_value() && !skipped_.has_value()) return absl::OkStatus();
  return absl::AbortedError("the client left in the middle of a request");
}

// ---- Events.

void Transmission::OnSent() {
  sent_ = true;
  if (waits_for_room_) reactor_.Schedule(std::exchange(waits_for_room_, nullptr));
  // The last answer before the end; what waits in Receive() has to hear of it.
  if (stopping_ && executor_.requests_in_flight() == 0) transport_->CancelReceive();
}

void Transmission::Stop() {
  if (stopping_) return;
  stopping_ = true;
  executor_.BeginShutdown();
  ArmDeadline();
  transport_->CancelReceive();
}

void Transmission::Abort() {
  Stop();
  transport_->Shutdown();
}

void Transmission::ArmDeadline() {
  if (std::exchange(deadline_armed_, true)) return;
  deadline_ = Reactor::Timer(reactor_, options_.stop_timeout, [this] { transport_->Shutdown(); });
}

void Transmission::WatchIdleness() {
  if (std::exchange(idle_timer_armed_, true)) return;
  idle_timer_ = Reactor::Timer(reactor_, options_.idle_after, [this] {
    idle_timer_armed_ = false;
    if (std::exchange(received_in_period_, false)) {
      WatchIdleness();
    } else {
      shrink_ = true;
      transport_->CancelReceive();
    }
  });
}

void Transmission::ShrinkToIdle() {
  shrink_ = false;
  if (buffer_.size() < ReceiveBuffer::kIdleSize) buffer_.ShrinkToIdle();
  executor_.ShrinkToIdle();
}

}  // namespace berth::nbd
