// RequestSender: a connection's outgoing requests, in order, many with one send.
//
// Thread: its transport's. Lifetime: the gate has been closed and awaited before it is destroyed.
#ifndef BERTH_NBD_CLIENT_REQUEST_SENDER_H_
#define BERTH_NBD_CLIENT_REQUEST_SENDER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>

#include "absl/functional/any_invocable.h"
#include "image/io/gate.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "nbd/client/pending_request.h"
#include "nbd/transport.h"
#include "nbd/wire.h"

namespace berth::nbd {

class RequestSender {
 public:
  // `on_sent` hears of each request that has left; `on_broken` once, with -errno, after which nothing is
  // sent. Neither may destroy the sender.
  RequestSender(Reactor& reactor, Gate& gate, Transport& transport, ReplyStyle style,
                absl::AnyInvocable<void(PendingRequest&)> on_sent, absl::AnyInvocable<void(int)> on_broken);
  RequestSender(const RequestSender&) = delete;
  RequestSender& operator=(const RequestSender&) = delete;

  // The request and its payload stay until on_sent(), or until the gate is empty.
  void Send(PendingRequest& request);
  // NBD_CMD_DISC, after what was given before.
  void SendDisconnect();

 private:
  struct Message {
    std::array<uint8_t, kExtendedRequestSize> header = {};
    PendingRequest* request = nullptr;  // Null for NBD_CMD_DISC.
    size_t sent = 0;                    // Bytes, of the header and of the payload.
  };

  void Enqueue(const Request& fields, PendingRequest* request);
  Task<void> Run(Gate::Holder);
  size_t SizeOf(const Message& message) const;
  void Advance(size_t sent);

  Reactor& reactor_;
  Gate& gate_;
  Transport& transport_;
  const ReplyStyle style_;
  absl::AnyInvocable<void(PendingRequest&)> on_sent_;
  absl::AnyInvocable<void(int)> on_broken_;
  std::deque<Message> queue_;
  bool running_ = false;
  bool broken_ = false;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_REQUEST_SENDER_H_
