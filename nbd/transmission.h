// Transmission: one connection from its first request to its end (proto.md, "Transmission").
//
// One coroutine receives, and gives every complete request of what it received to the executor; then the
// executor sends all replies that are ready, and the coroutine receives again. With cached data a batch of
// requests thus costs two system calls, one io_uring_enter that receives and one sendmsg, beside the image's
// own: three at queue depth 1.
//
// The payload of a large write is received straight into a buffer of its own. That receive also takes the
// header that follows, so that a stream of large writes costs one receive each and copies next to nothing.
//
// Reading stops while the connection holds as many requests or bytes as it may, and goes on as soon as a
// reply has left. So a client that does not read its replies stops itself, and nobody else.
//
// The end comes from the client (NBD_CMD_DISC, end of stream, a breach of the protocol, a broken socket) or
// from Stop(). Either way running requests finish and are answered, and `stop_timeout` later the socket is
// shut down so that no client delays the end; only the device can, as it owns the buffers of what runs.
//
// Thread: confined to its reactor. Lifetime: owns itself from Start() on.
#ifndef BERTH_NBD_TRANSMISSION_H_
#define BERTH_NBD_TRANSMISSION_H_

#include <array>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "image/block/block_device.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "nbd/executor.h"
#include "nbd/negotiated.h"
#include "nbd/receive_buffer.h"
#include "nbd/request_check.h"
#include "nbd/session_options.h"
#include "nbd/transport.h"
#include "nbd/wire.h"

namespace berth::nbd {

class Transmission {
 public:
  // `on_end` is called once, after everything that the transmission held is gone, with what was wrong: OK
  // where the client left between two requests or Stop() was called.
  static Transmission* Start(Reactor& reactor, std::unique_ptr<Transport> transport, Negotiated negotiated,
                             SessionChannels channels, const SessionOptions& options,
                             absl::AnyInvocable<void(absl::Status)> on_end);

  void Stop();
  // As Stop(), and shuts the socket down at once.
  void Abort();

 private:
  // What the loop does after it has served what it could.
  enum class Next {
    kServe,    // There may be more to serve at once.
    kReceive,  // More bytes are needed.
    kRoom,     // Something has to leave first.
    kYield,    // Others' turn.
    kClose,
  };

  // A write whose payload is received into its own buffer.
  struct LargeWrite {
    Request request;
    Buffer payload;
    size_t received = 0;

    size_t missing() const { return static_cast<size_t>(request.length) - received; }
  };

  // A refused request whose payload has to be read past.
  struct Skipped {
    Request request;
    Refusal refusal;
    uint64_t left = 0;
  };

  // Where a receive goes: a large write's payload first, if there is one, then the buffer.
  struct Target {
    std::array<iovec, 2> vectors;
    size_t count = 0;
    size_t payload = 0;  // Bytes of the first vector where it is a payload.
  };

  Transmission(Reactor& reactor, std::unique_ptr<Transport> transport, Negotiated negotiated,
               SessionChannels channels, const SessionOptions& options,
               absl::AnyInvocable<void(absl::Status)> on_end);

  Task<void> Run();
  Next ServeReceived();
  Next ServeNext();
  Next ServeRequest(const Request& request);
  Next ServeWrite(const Request& request);
  Next ServeBlockStatusPayload(const Request& request);
  ContextMask AllContexts() const;
  // Of the IDs in a payload; none where one of them is unknown or there twice.
  ContextMask FindContexts(absl::Span<const uint8_t> ids) const;
  Next RefuseRequest(const Request& request, const Refusal& refusal);
  Next Skip();
  size_t NeededFor(const Request& request) const;

  bool MaySleep() const { return !stopping_ || executor_.requests_in_flight() > 0; }
  Target PrepareReceive();
  // False where nothing more will come.
  bool Received(const Target& target, int result);
  Next Violation(absl::string_view message);
  absl::Status EndOfStream(int result) const;

  void OnSent();
  auto Room();
  void ArmDeadline();
  void WatchIdleness();
  void ShrinkToIdle();
  void End();

  Reactor& reactor_;
  Negotiated negotiated_;
  const SessionOptions options_;
  absl::AnyInvocable<void(absl::Status)> on_end_;
  absl::Status reason_;

  SessionChannels channels_;
  std::unique_ptr<Transport> transport_;
  Executor executor_;
  ReceiveBuffer buffer_;
  RequestBounds bounds_;
  const size_t request_size_;  // Of a header.
  std::optional<LargeWrite> large_write_;
  std::optional<Skipped> skipped_;
  int large_writes_expected_ = 0;  // Receives that leave room for a large payload before it is known.

  bool stopping_ = false;
  bool sent_ = false;  // Since the last ServeReceived().
  std::coroutine_handle<> waits_for_room_;
  bool deadline_armed_ = false;
  Reactor::Timer deadline_;

  // Memory goes back when a period passed without a receive.
  bool idle_timer_armed_ = false;
  Reactor::Timer idle_timer_;
  bool received_in_period_ = false;
  bool shrink_ = false;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_TRANSMISSION_H_
