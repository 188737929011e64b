// The payloads of a server's option replies (proto.md, "Option reply types"), and names for messages.
//
// Pure functions: any thread. Errors are INTERNAL and say what was wrong with the bytes.
#ifndef BERTH_NBD_CLIENT_OPTION_REPLY_H_
#define BERTH_NBD_CLIENT_OPTION_REPLY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "nbd/client/export_info.h"
#include "nbd/wire.h"

namespace berth::nbd {

// "NBD_OPT_GO"; a number where it has no name.
std::string OptionName(Option option);

// That the server broke the protocol.
absl::Status Violation(absl::string_view what);

// A text of the server in a message for a person: quoted, escaped, and cut where it is long.
std::string ServerText(absl::string_view text);

// What an error reply says. `data` is the server's text.
absl::Status Refusal(Option option, OptionReply type, absl::Span<const uint8_t> data);

// NBD_REP_SERVER: the name and, as a description, what follows it.
absl::Status ParseServerReply(absl::Span<const uint8_t> data, ExportInfo* out);

// NBD_REP_INFO. Sets `*has_export` for NBD_INFO_EXPORT; what it does not know is ignored.
absl::Status ParseInfoReply(absl::Span<const uint8_t> data, ExportInfo* out, bool* has_export);

// NBD_REP_META_CONTEXT.
absl::Status ParseContextReply(absl::Span<const uint8_t> data, MetaContext* out);

// Size and flags (NBD_INFO_EXPORT, its type included, of 12 bytes).
absl::Status ParseInfoExport(absl::Span<const uint8_t> data, ExportInfo* out);

// The data of NBD_OPT_INFO and NBD_OPT_GO that asks for every information there is.
std::vector<uint8_t> InfoRequestData(absl::string_view export_name);

// The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
std::vector<uint8_t> ContextRequestData(absl::string_view export_name,
                                        const std::vector<std::string>& queries);

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_OPTION_REPLY_H_
