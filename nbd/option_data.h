// The data of the handshake's options that carry any, taken apart (proto.md, "Option types").
//
// Pure functions; any thread. What they return points into `data`. An error is what the client did wrong, in
// words for it: RESOURCE_EXHAUSTED calls for NBD_REP_ERR_TOO_BIG, INVALID_ARGUMENT for NBD_REP_ERR_INVALID.
#ifndef BERTH_NBD_OPTION_DATA_H_
#define BERTH_NBD_OPTION_DATA_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "nbd/wire.h"

namespace berth::nbd {

// Whether `name` may be an export's: UTF-8 without NUL, at most 4,096 bytes. The empty one may.
absl::Status CheckExportName(absl::string_view name);

// NBD_OPT_INFO and NBD_OPT_GO.
struct InfoRequest {
  absl::string_view name;
  bool wants_name = false;
  bool wants_description = false;
  bool wants_block_size = false;
};
absl::StatusOr<InfoRequest> ParseInfoRequest(absl::Span<const uint8_t> data);

// NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
struct MetaContextRequest {
  absl::string_view name;
  std::vector<absl::string_view> queries;  // Each with a namespace and a colon.
};
absl::StatusOr<MetaContextRequest> ParseMetaContextRequest(absl::Span<const uint8_t> data);

}  // namespace berth::nbd

#endif  // BERTH_NBD_OPTION_DATA_H_
