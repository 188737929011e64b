// What a server says of an export, and what a client's handshake agreed on.
#ifndef BERTH_NBD_CLIENT_EXPORT_INFO_H_
#define BERTH_NBD_CLIENT_EXPORT_INFO_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nbd/negotiated.h"
#include "nbd/wire.h"

namespace berth::nbd {

// Texts are the server's bytes, at most 4,096 of them: whoever prints them escapes what a terminal must not
// see.
struct ExportInfo {
  std::string name;  // The server's own one, where it told it (NBD_INFO_NAME), else what was asked for.
  std::string description;
  uint64_t size = 0;   // Bytes; at most INT64_MAX.
  uint16_t flags = 0;  // "Transmission flags".
  // Nothing where the server did not tell ("Size constraints"). The first two are powers of two, and none is
  // smaller than the one before it but for the last, which is not smaller than the first.
  std::optional<InfoBlockSize> block_sizes;
  // Those that were selected, each with an ID of its own; in a list those that may be, where IDs say nothing.
  std::vector<MetaContext> contexts;

  bool Has(uint16_t flag) const { return (flags & flag) != 0; }
};

// One of a server's list.
struct ListedExport {
  ExportInfo info;
  // Why the server told its name and description, and no more.
  absl::Status status;
};

// With what a connection enters the transmission phase.
struct Agreement {
  ExportInfo info;
  ReplyStyle style = ReplyStyle::kSimple;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_EXPORT_INFO_H_
