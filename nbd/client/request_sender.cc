#include "nbd/client/request_sender.h"

#include <sys/uio.h>

#include <utility>

namespace berth::nbd {
namespace {

constexpr size_t kMaxVectors = 128;  // Of one send.

}  // namespace

RequestSender::RequestSender(Reactor& reactor, Gate& gate, Transport& transport, ReplyStyle style,
                             absl::AnyInvocable<void(PendingRequest&)> on_sent,
                             absl::AnyInvocable<void(int)> on_broken)
    : reactor_(reactor),
      gate_(gate),
      transport_(transport),
      style_(style),
      on_sent_(std::move(on_sent)),
      on_broken_(std::move(on_broken)) {}

void RequestSender::Send(PendingRequest& request) {
  Request fields{request.flags, request.command, request.cookie, request.offset, request.length};
  if (style_ == ReplyStyle::kExtended && !request.payload.empty()) {
    fields.flags |= kCommandFlagPayloadLen;
    fields.length = request.payload.size();
  }
  Enqueue(fields, &request);
}

void RequestSender::SendDisconnect() { Enqueue({0, Command::kDisconnect, 0, 0, 0}, nullptr); }

void RequestSender::Enqueue(const Request& fields, PendingRequest* request) {
  if (broken_) return;
  Message& message = queue_.emplace_back();
  message.request = request;
  if (style_ == ReplyStyle::kExtended) {
    EncodeExtendedRequest(fields, absl::MakeSpan(message.header));
  } else {
    EncodeRequest(fields, absl::MakeSpan(message.header));
  }
  if (running_) return;
  running_ = true;
  Spawn(Run(gate_.Enter()));
}

size_t RequestSender::SizeOf(const Message& message) const {
  return RequestSize(style_) + (message.request == nullptr ? 0 : message.request->payload.size());
}

Task<void> RequestSender::Run(Gate::Holder) {
  co_await reactor_.Yield();  // What else is made in this turn goes with it.
  iovec vectors[kMaxVectors];
  while (!queue_.empty()) {
    size_t count = 0;
    for (auto message = queue_.begin(); message != queue_.end() && count + 2 <= kMaxVectors; ++message) {
      const size_t header = RequestSize(style_);
      if (message->sent < header) {
        vectors[count++] = {message->header.data() + message->sent, header - message->sent};
      }
      if (message->request == nullptr || message->request->payload.empty()) continue;
      const size_t skip = message->sent < header ? 0 : message->sent - header;
      const absl::Span<const uint8_t> payload = message->request->payload.subspan(skip);
      vectors[count++] = {const_cast<uint8_t*>(payload.data()), payload.size()};
    }
    const int sent = co_await transport_.Send(absl::MakeConstSpan(vectors, count));
    if (sent < 0) {
      broken_ = true;
      queue_.clear();
      on_broken_(sent);
      break;
    }
    Advance(static_cast<size_t>(sent));
  }
  running_ = false;
}

void RequestSender::Advance(size_t sent) {
  while (sent > 0) {
    Message& message = queue_.front();
    const size_t left = SizeOf(message) - message.sent;
    if (sent < left) {
      message.sent += sent;
      return;
    }
    sent -= left;
    PendingRequest* const request = message.request;
    queue_.pop_front();
    if (request != nullptr) on_sent_(*request);
  }
}

}  // namespace berth::nbd
