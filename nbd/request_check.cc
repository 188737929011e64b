#include "nbd/request_check.h"

#include <cerrno>

namespace berth::nbd {
namespace {

constexpr uint64_t kMaxSlowZeroes = uint64_t{4} << 30;

// What stands in the specification about one command.
struct Rule {
  uint16_t needed_flag = 0;    // The transmission flag that exposes it.
  uint16_t command_flags = 0;  // Those that may be set, beside FUA.
  bool writes = false;
  bool has_payload = false;  // In either direction.
  bool known = true;
};

Rule RuleFor(const Request& request) {
  switch (request.command) {
    case Command::kRead:
      return {.command_flags = kCommandFlagDf, .has_payload = true};
    case Command::kWrite:
      return {.command_flags = kCommandFlagPayloadLen, .writes = true, .has_payload = true};
    case Command::kFlush:
      return {.needed_flag = kFlagSendFlush};
    case Command::kTrim:
      return {.needed_flag = kFlagSendTrim, .writes = true};
    case Command::kCache:
      return {.needed_flag = kFlagSendCache};
    case Command::kWriteZeroes:
      return {.needed_flag = kFlagSendWriteZeroes,
              .command_flags = kCommandFlagNoHole | kCommandFlagFastZero,
              .writes = true};
    case Command::kBlockStatus:
      return {.command_flags = kCommandFlagReqOne | kCommandFlagPayloadLen};
    case Command::kResize:
      return {.needed_flag = kFlagSendResize, .writes = true};
    case Command::kDisconnect:
      break;
  }
  return {.known = false};
}

uint16_t AllowedFlags(const Request& request, const Rule& rule, const RequestBounds& bounds) {
  const uint16_t transmission_flags = bounds.transmission_flags;
  const bool payload = request.command == Command::kWrite
                           ? bounds.reply_style == ReplyStyle::kExtended
                           : (transmission_flags & kFlagBlockStatusPayload) != 0;
  uint16_t allowed = rule.command_flags;
  if (!payload) allowed &= static_cast<uint16_t>(~kCommandFlagPayloadLen);
  if ((transmission_flags & kFlagSendFua) != 0) allowed |= kCommandFlagFua;
  if ((transmission_flags & kFlagSendDf) == 0) allowed &= static_cast<uint16_t>(~kCommandFlagDf);
  if ((transmission_flags & kFlagSendFastZero) == 0) allowed &= static_cast<uint16_t>(~kCommandFlagFastZero);
  return allowed;
}

// How much of the export a request is about. Of a RESIZE the offset is the new size; a BLOCK_STATUS may have
// its length in a payload.
uint64_t RangeLength(const Request& request) {
  if (request.command == Command::kResize) return 0;
  if (request.command == Command::kBlockStatus && (request.flags & kCommandFlagPayloadLen) != 0) return 0;
  return request.length;
}

Refusal CheckRange(const Request& request, const Rule& rule, const RequestBounds& bounds) {
  if (request.offset <= bounds.size && request.length <= bounds.size - request.offset) return {};
  // "Error values": ENOSPC for writes and zeroes, EINVAL for the others, trim among them.
  // NBD_CMD_RESIZE: ENOSPC for every request behind the end that the client itself has moved.
  const bool cut_off =
      request.offset <= bounds.former_size && request.length <= bounds.former_size - request.offset;
  const bool no_space = cut_off || (rule.writes && request.command != Command::kTrim);
  Refusal refusal = {no_space ? ENOSPC : EINVAL, "the range goes past the end of the export", {}};
  if (request.offset < bounds.size) refusal.offset = bounds.size;
  return refusal;
}

}  // namespace

uint64_t PayloadLength(const Request& request, ReplyStyle style) {
  const bool has_payload = style == ReplyStyle::kExtended ? (request.flags & kCommandFlagPayloadLen) != 0
                                                          : request.command == Command::kWrite;
  return has_payload ? request.length : 0;
}

Refusal CheckRequest(const Request& request, const RequestBounds& bounds) {
  if (bounds.stopping) return {ESHUTDOWN, "the server is shutting down", {}};
  const Rule rule = RuleFor(request);
  if (!rule.known) return {EINVAL, "unknown command", {}};
  if (rule.writes && (bounds.transmission_flags & kFlagReadOnly) != 0) {
    return {EPERM, "the export is read-only", {}};
  }
  if ((rule.needed_flag & ~bounds.transmission_flags) != 0) {
    if (request.command == Command::kResize) return {EPERM, "the export does not let clients resize it", {}};
    return {EINVAL, "the export does not offer this command", {}};
  }
  if ((request.flags & ~AllowedFlags(request, rule, bounds)) != 0) {
    return {EINVAL, "a command flag is unknown, or not for this command", {}};
  }
  const bool payload_flag = (request.flags & kCommandFlagPayloadLen) != 0;
  if (bounds.reply_style == ReplyStyle::kExtended && request.command == Command::kWrite && !payload_flag) {
    return {EINVAL, "a write without the flag that says it has a payload", {}};
  }
  if (request.command == Command::kFlush) {
    if (request.offset == 0 && request.length == 0) return {};
    return {EINVAL, "a flush has neither offset nor length", {}};
  }
  if (((request.offset | RangeLength(request)) & (bounds.minimum_block - 1)) != 0) {
    return {EINVAL, "offset or length is no multiple of the minimum block size", {}};
  }
  if (request.command == Command::kResize) return {};
  if (request.command == Command::kBlockStatus) {
    if (!bounds.has_contexts) return {EINVAL, "no metadata context was selected", {}};
    if (payload_flag) return {};
    if (request.length == 0) return {EINVAL, "a block status of no bytes", {}};
  }
  if (rule.has_payload && request.length > bounds.maximum_payload) {
    // NBD_CMD_READ: a client with structured replies knows EOVERFLOW and tries again with less.
    const bool overflow = request.command == Command::kRead && bounds.reply_style != ReplyStyle::kSimple;
    return {overflow ? EOVERFLOW : EINVAL, "more than the maximum payload in one request", {}};
  }
  // "Size constraints": what is no faster than writing is not done for more than a compact request can say.
  if (request.command == Command::kWriteZeroes && request.length > kMaxSlowZeroes &&
      (bounds.transmission_flags & kFlagSendFastZero) == 0) {
    return {EOVERFLOW, "zeroes are not fast here: at most 4 GiB in one request", {}};
  }
  return CheckRange(request, rule, bounds);
}

}  // namespace berth::nbd
