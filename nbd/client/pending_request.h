// PendingRequest: a request of a client from its making to its complete answer.
#ifndef BERTH_NBD_CLIENT_PENDING_REQUEST_H_
#define BERTH_NBD_CLIENT_PENDING_REQUEST_H_

#include <coroutine>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "nbd/client/read_coverage.h"
#include "nbd/wire.h"

namespace berth::nbd {

// What a server says of one metadata context.
struct ContextStatus {
  uint32_t context_id = 0;
  // Consecutive from the request's offset on; the last may reach past its end. At most kMaxExtents: what the
  // server says beyond is left out.
  std::vector<ExtentDescriptor> extents;
};

// Lives in the frame of the operation that awaits it. Thread: its connection's.
struct PendingRequest {
  PendingRequest(Command command, uint16_t flags, uint64_t offset, uint64_t length)
      : command(command), flags(flags), offset(offset), length(length), coverage(offset, length) {}

  // What is asked.
  const Command command;
  const uint16_t flags;
  const uint64_t offset;
  const uint64_t length;              // What it is about, whether it carries a payload or not.
  absl::Span<const uint8_t> payload;  // To be sent with it.
  absl::Span<uint8_t> data;           // Of a read: where its `length` bytes go.
  std::vector<uint32_t> context_ids;  // Of a block status: those that must be answered.

  // On its way.
  uint64_t cookie = 0;
  int64_t deadline_ns = 0;  // CLOCK_MONOTONIC
  bool sent = false;        // Nothing of `payload` is looked at any more.
  bool answered = false;    // Nothing more comes.
  std::coroutine_handle<> waiter;

  // The answer.
  ReadCoverage coverage;
  std::vector<ContextStatus> status;
  uint32_t error_chunks = 0;
  Error error = Error::kNone;            // The first one.
  std::string message;                   // The server's words about it.
  std::optional<uint64_t> error_offset;  // Where it says so.
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_PENDING_REQUEST_H_
