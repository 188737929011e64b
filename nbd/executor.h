// Executor: serves the checked requests of one connection from a channel, and answers them.
//
// A request that completes at once, as what is cached does, costs no coroutine frame and no allocation;
// others wait in a coroutine of their own, which owns their buffer until completion. Replies leave in the
// order of completion. All that complete in one batch, or in one turn of the reactor, are sent together.
//
// A request that the device has not completed by its deadline is answered with an error, and stays: the
// device owns its buffer, and its slot, until it completes it, whenever that is. Nobody hears of the result
// then.
//
// Thread: confined to its reactor. Lifetime: Drain() is awaited before it is destroyed; channel, transport
// and what was negotiated outlive it.
#ifndef BERTH_NBD_EXECUTOR_H_
#define BERTH_NBD_EXECUTOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "image/block/block_device.h"
#include "image/block/extent.h"
#include "image/block/status_context.h"
#include "image/io/gate.h"
#include "image/io/io_result.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "nbd/buffer_pool.h"
#include "nbd/negotiated.h"
#include "nbd/reply_queue.h"
#include "nbd/reply_writer.h"
#include "nbd/request_check.h"
#include "nbd/transport.h"
#include "nbd/wire.h"

namespace berth::nbd {

// What a session opened of its device.
struct SessionChannels {
  std::unique_ptr<BlockChannel> block;
  // One for each of Negotiated::contexts; null for base:allocation, which `block` answers.
  std::vector<std::unique_ptr<StatusChannel>> contexts;
};

// Which of Negotiated::contexts a BLOCK_STATUS is about: a bit for each.
using ContextMask = uint32_t;
static_assert(kMaxSelectedContexts <= 32);

// What one connection may hold.
struct FlightLimits {
  size_t bytes = 0;
  size_t requests = 0;
  // Of each request, from its arrival on.
  absl::Duration deadline = absl::InfiniteDuration();
};

class Executor {
 public:
  // `on_sent` is called when replies have left, and there may be room for more requests.
  Executor(Reactor& reactor, SessionChannels& channels, const Negotiated& negotiated, Transport& transport,
           const FlightLimits& limits, absl::AnyInvocable<void()> on_sent);

  // What a BLOCK_STATUS is charged while the device looks: one context's extents, and all chunks.
  size_t BlockStatusBytes() const {
    return kMaxExtents * (sizeof(Extent) + sizeof(StatusExtent)) +
           negotiated_.contexts.size() * writer_.BlockStatusBytes(kMaxExtents);
  }

  // The largest size from which this connection made the export smaller; 0 where it did not.
  uint64_t former_size() const { return former_size_; }

  // Requests whose reply has not left yet.
  size_t requests_in_flight() const { return requests_in_flight_; }
  // Requests that were answered at their deadline and that the device still has.
  size_t overdue() const { return overdue_; }
  // The connection's memory in buffers; whoever allocates for it charges it here.
  size_t* bytes_held() { return &bytes_held_; }
  BufferPool& pool() { return pool_; }
  // What the connection holds, and what its reactor's connections have left in the pool.
  size_t idle_cost() const { return bytes_held_ + pool_.unused_bytes(); }

  // Whether one more request that takes a buffer of `bytes` is within the limits. Always true while nothing
  // is in flight or overdue.
  bool HasRoomFor(size_t bytes) const;

  // Between these, requests are given to the functions below; EndBatch() sends what is ready.
  void BeginBatch();
  void EndBatch();
  // Payload bytes of the current batch.
  size_t batch_bytes() const { return batch_bytes_; }

  void Refuse(const Request& request, const Refusal& refusal);
  // `data` lies in `owner`, which is released on completion.
  void Write(const Request& request, absl::Span<const uint8_t> data, Buffer owner);
  // About some of the contexts; at least one.
  void BlockStatus(const Request& request, ContextMask contexts);
  // Every command but those above and DISC.
  void Serve(const Request& request);
  // What is done piece by piece ends early, with ESHUTDOWN.
  void BeginShutdown() { stopping_ = true; }

  // Returns when everything is answered, or dropped on a broken connection.
  auto Drain() { return gate_.Close(); }

  // Gives back memory that past bursts took.
  void ShrinkToIdle() {
    replies_.ShrinkToIdle();
    pool_.Trim();
  }

 private:
  struct Completion {
    Operation operation;
    uint64_t bytes;
    int64_t started;
    IoResult result;
  };

  // A request that the device works on; lies in the frame of the coroutine that waits for it.
  struct Pending {
    const Request request;
    const int64_t started;
    bool overdue = false;
    Pending* older = nullptr;
    Pending* newer = nullptr;
  };

  void ServeRead(const Request& request);
  // Takes the result where it is there already, else waits for it in a coroutine.
  void Run(const Request& request, Task<IoResult> task, Buffer buffer);
  Task<void> Await(Request request, Task<IoResult> task, Buffer buffer, int64_t started, Gate::Holder holder);
  Task<IoResult> DiscardInPieces(Request request);
  Task<IoResult> ZeroInPieces(Request request);
  Task<void> ServeBlockStatus(Request request, ContextMask contexts, int64_t started, Gate::Holder holder);
  Task<IoResult> AnswerContext(Request request, size_t context, bool last);
  Task<void> Resize(Request request, Gate::Holder holder);
  Task<IoResult> LookUp(Request request, size_t context, std::vector<StatusExtent>* extents);

  bool HasDeadline() const { return limits_.deadline != absl::InfiniteDuration(); }
  void Watch(Pending& pending);
  void Unwatch(Pending& pending);
  void ArmDeadline();
  // Answers what is overdue.
  void EnforceDeadline();

  void Finish(const Request& request, IoResult result, Buffer payload, int64_t started);
  void Observe(const Request& request, IoResult result, int64_t started);
  void Answered();
  Task<void> FlushAtEndOfTurn(Gate::Holder holder);
  void Flush();

  Reactor& reactor_;
  SessionChannels& channels_;
  BlockChannel& channel_;
  const Negotiated& negotiated_;
  const FlightLimits limits_;
  RequestObserver* const observer_;  // May be null.
  BufferPool& pool_;
  absl::AnyInvocable<void()> on_sent_;

  size_t requests_in_flight_ = 0;
  size_t bytes_held_ = 0;
  size_t overdue_ = 0;
  bool stopping_ = false;
  uint64_t former_size_ = 0;
  bool in_batch_ = false;
  bool flush_scheduled_ = false;
  size_t batch_bytes_ = 0;
  int64_t batch_started_ = 0;            // CLOCK_MONOTONIC, ns; only for observer and deadline.
  std::vector<Completion> completions_;  // Since the last flush; only for the observer.
  // Those in time, in the order of arrival.
  Pending* oldest_ = nullptr;
  Pending* newest_ = nullptr;
  bool deadline_armed_ = false;
  Gate gate_;
  ReplyQueue replies_;
  ReplyWriter writer_;
  Reactor::Timer deadline_timer_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_EXECUTOR_H_
