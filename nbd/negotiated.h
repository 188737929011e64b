// Negotiated: what a handshake agreed on, and what the transmission phase therefore speaks.
#ifndef BERTH_NBD_NEGOTIATED_H_
#define BERTH_NBD_NEGOTIATED_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "image/block/status_context.h"
#include "nbd/block_sizes.h"
#include "nbd/export.h"
#include "nbd/wire.h"

namespace berth::nbd {

// A metadata context that the client selected (proto.md, "Metadata querying").
struct MetaContext {
  uint32_t id = 0;   // Names the context in NBD_REPLY_TYPE_BLOCK_STATUS; unique in its connection.
  std::string name;  // "base:allocation".
  std::shared_ptr<StatusContext> source = nullptr;  // Null for base:allocation, which every device has.

  bool operator==(const MetaContext&) const = default;
};

// The most that a client may select.
inline constexpr size_t kMaxSelectedContexts = 32;

inline constexpr char kBaseAllocation[] = "base:allocation";

// The value-initialized rest, beside an export, is what the kernel's client speaks on a socketpair.
struct Negotiated {
  std::shared_ptr<const Export> served;
  ReplyStyle reply_style = ReplyStyle::kSimple;
  BlockSizes block_sizes;  // What requests are held against.
  // Not empty only with structured or extended replies. Without any, NBD_CMD_BLOCK_STATUS is an error.
  std::vector<MetaContext> contexts;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_NEGOTIATED_H_
