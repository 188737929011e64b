// The one check of a request from outside; everything behind it relies on it.
#ifndef BERTH_NBD_REQUEST_CHECK_H_
#define BERTH_NBD_REQUEST_CHECK_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "nbd/negotiated.h"
#include "nbd/wire.h"

namespace berth::nbd {

// What requests of one connection are held against.
struct RequestBounds {
  uint64_t size = 0;  // Of the export, in bytes, now.
  // What the client had before it made the export smaller; else 0.
  uint64_t former_size = 0;
  uint32_t minimum_block = 1;
  uint32_t maximum_payload = kMaxPayload;
  uint16_t transmission_flags = 0;
  ReplyStyle reply_style = ReplyStyle::kSimple;
  bool has_contexts = false;
  bool stopping = false;
};

// Why a request is refused. All false and empty where it is not.
struct Refusal {
  int error = 0;                   // An errno.
  absl::string_view message;       // For a person.
  std::optional<uint64_t> offset;  // The first byte that is wrong, where it lies in the request's range.

  explicit operator bool() const { return error != 0; }
};

// The bytes that follow a request's header, in either style of headers: those of a WRITE, or of any command
// with NBD_CMD_FLAG_PAYLOAD_LEN in an extended one ("Request message").
uint64_t PayloadLength(const Request& request, ReplyStyle style);

// proto.md, "Request types", "Command flags", "Error values". Where the specification leaves a length of 0
// open: success without effect, except for BLOCK_STATUS, whose reply cannot be empty. A range may then end
// at the device's end but not lie past it. Of a BLOCK_STATUS with a payload, where the range's length is, all
// but the range is checked. Not for NBD_CMD_DISC, which has no reply. Pure.
Refusal CheckRequest(const Request& request, const RequestBounds& bounds);

}  // namespace berth::nbd

#endif  // BERTH_NBD_REQUEST_CHECK_H_
