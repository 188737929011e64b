#include "nbd/client/option_reply.h"

#include <cassert>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "nbd/protocol_string.h"

namespace berth::nbd {
namespace {

constexpr size_t kMaxShown = 1024;  // Of a server's text in a message.

absl::string_view Text(absl::Span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

absl::Status TooLong(absl::string_view what, size_t size) {
  return Violation(absl::StrCat(what, " has ", size, " bytes, and at most ", kMaxStringSize, " are allowed"));
}

constexpr bool IsPowerOfTwo(uint32_t value) { return value != 0 && (value & (value - 1)) == 0; }

void Append16(std::vector<uint8_t>& out, uint16_t value) {
  out.resize(out.size() + 2);
  Store16(out.data() + out.size() - 2, value);
}
void Append32(std::vector<uint8_t>& out, size_t value) {
  out.resize(out.size() + 4);
  Store32(out.data() + out.size() - 4, static_cast<uint32_t>(value));
}
void AppendString(std::vector<uint8_t>& out, absl::string_view text) {
  Append32(out, text.size());
  out.insert(out.end(), text.begin(), text.end());
}

}  // namespace

std::string OptionName(Option option) {
  switch (option) {
    case Option::kExportName:
      return "NBD_OPT_EXPORT_NAME";
    case Option::kAbort:
      return "NBD_OPT_ABORT";
    case Option::kList:
      return "NBD_OPT_LIST";
    case Option::kStartTls:
      return "NBD_OPT_STARTTLS";
    case Option::kInfo:
      return "NBD_OPT_INFO";
    case Option::kGo:
      return "NBD_OPT_GO";
    case Option::kStructuredReply:
      return "NBD_OPT_STRUCTURED_REPLY";
    case Option::kListMetaContext:
      return "NBD_OPT_LIST_META_CONTEXT";
    case Option::kSetMetaContext:
      return "NBD_OPT_SET_META_CONTEXT";
    case Option::kExtendedHeaders:
      return "NBD_OPT_EXTENDED_HEADERS";
    case Option::kPeekExport:
      break;
  }
  return absl::StrCat("option ", static_cast<uint32_t>(option));
}

absl::Status Violation(absl::string_view what) {
  return absl::InternalError(absl::StrCat("the server broke the NBD protocol: ", what));
}

std::string ServerText(absl::string_view text) {
  const absl::string_view cut = CutAtCharacter(text, kMaxShown);
  const std::string escaped = IsProtocolString(cut) ? absl::Utf8SafeCHexEscape(cut) : absl::CHexEscape(cut);
  // In double quotes the single ones need no escape.
  return absl::StrCat("\"", absl::StrReplaceAll(escaped, {{"\\'", "'"}}),
                      cut.size() < text.size() ? "..." : "", "\"");
}

absl::Status Refusal(Option option, OptionReply type, absl::Span<const uint8_t> data) {
  absl::StatusCode code = absl::StatusCode::kUnknown;
  std::string reason;
  switch (type) {
    case OptionReply::kErrUnsup:
      code = absl::StatusCode::kUnimplemented;
      reason = "it does not know it (NBD_REP_ERR_UNSUP)";
      break;
    case OptionReply::kErrPolicy:
      code = absl::StatusCode::kPermissionDenied;
      reason = "it is not allowed (NBD_REP_ERR_POLICY)";
      break;
    case OptionReply::kErrInvalid:
      code = absl::StatusCode::kInvalidArgument;
      reason = "it takes it for malformed (NBD_REP_ERR_INVALID)";
      break;
    case OptionReply::kErrPlatform:
      code = absl::StatusCode::kUnimplemented;
      reason = "it cannot, where it runs (NBD_REP_ERR_PLATFORM)";
      break;
    case OptionReply::kErrTlsReqd:
      code = absl::StatusCode::kUnauthenticated;
      reason = "it wants TLS (NBD_REP_ERR_TLS_REQD); write the scheme with nbds in the place of nbd";
      break;
    case OptionReply::kErrUnknown:
      code = absl::StatusCode::kNotFound;
      reason = "it has no such export (NBD_REP_ERR_UNKNOWN)";
      break;
    case OptionReply::kErrShutdown:
      code = absl::StatusCode::kUnavailable;
      reason = "it is about to stop (NBD_REP_ERR_SHUTDOWN); try again later";
      break;
    case OptionReply::kErrBlockSizeReqd:
      code = absl::StatusCode::kFailedPrecondition;
      reason = "its block sizes must be asked for (NBD_REP_ERR_BLOCK_SIZE_REQD)";
      break;
    case OptionReply::kErrTooBig:
      code = absl::StatusCode::kInvalidArgument;
      reason = "it is too large (NBD_REP_ERR_TOO_BIG)";
      break;
    case OptionReply::kErrExtHeaderReqd:
      code = absl::StatusCode::kFailedPrecondition;
      reason = "it wants extended headers (NBD_REP_ERR_EXT_HEADER_REQD)";
      break;
    case OptionReply::kAck:
    case OptionReply::kServer:
    case OptionReply::kInfo:
    case OptionReply::kMetaContext:
      break;
  }
  if (reason.empty()) reason = absl::StrCat("error ", static_cast<uint32_t>(type) & ~kOptionErrorBit);
  std::string text = absl::StrCat("the server refuses ", OptionName(option), ": ", reason);
  if (!data.empty()) absl::StrAppend(&text, ", and says ", ServerText(Text(data)));
  return absl::Status(code, text);
}

absl::Status ParseServerReply(absl::Span<const uint8_t> data, ExportInfo* out) {
  if (data.size() < 4) return Violation("NBD_REP_SERVER ends within the length of its name");
  const size_t name = Load32(data.data());
  if (name > data.size() - 4) return Violation("NBD_REP_SERVER ends within its name");
  if (name > kMaxStringSize) return TooLong("an export's name", name);
  const absl::Span<const uint8_t> rest = data.subspan(4 + name);
  if (rest.size() > kMaxStringSize) return TooLong("an export's description", rest.size());
  out->name = std::string(Text(data.subspan(4, name)));
  out->description = std::string(Text(rest));
  return absl::OkStatus();
}

absl::Status ParseInfoExport(absl::Span<const uint8_t> data, ExportInfo* out) {
  if (data.size() != kInfoExportSize) {
    return Violation(absl::StrCat("NBD_INFO_EXPORT has ", data.size(), " bytes and not 12"));
  }
  InfoExport info;
  DecodeInfoExport(data, &info);
  if (info.size > INT64_MAX) {
    return Violation(absl::StrCat("an export of ", info.size, " bytes is larger than any can be"));
  }
  out->size = info.size;
  out->flags = info.transmission_flags;
  return absl::OkStatus();
}

absl::Status ParseInfoReply(absl::Span<const uint8_t> data, ExportInfo* out, bool* has_export) {
  if (data.size() < 2) return Violation("NBD_REP_INFO ends within its type");
  const auto type = static_cast<InfoType>(Load16(data.data()));
  const absl::Span<const uint8_t> payload = data.subspan(2);
  switch (type) {
    case InfoType::kExport:
      *has_export = true;
      return ParseInfoExport(data, out);
    case InfoType::kName:
      if (payload.size() > kMaxStringSize) return TooLong("an export's name", payload.size());
      out->name = std::string(Text(payload));
      return absl::OkStatus();
    case InfoType::kDescription:
      if (payload.size() > kMaxStringSize) return TooLong("an export's description", payload.size());
      out->description = std::string(Text(payload));
      return absl::OkStatus();
    case InfoType::kBlockSize: {
      if (data.size() != kInfoBlockSizeSize) {
        return Violation(absl::StrCat("NBD_INFO_BLOCK_SIZE has ", data.size(), " bytes and not 14"));
      }
      InfoBlockSize sizes;
      DecodeInfoBlockSize(data, &sizes);
      if (!IsPowerOfTwo(sizes.minimum) || sizes.minimum > 65536 || !IsPowerOfTwo(sizes.preferred) ||
          sizes.preferred < sizes.minimum || sizes.maximum_payload < sizes.minimum) {
        return Violation(absl::StrCat("its block sizes ", sizes.minimum, ", ", sizes.preferred, " and ",
                                      sizes.maximum_payload, " do not go together"));
      }
      out->block_sizes = sizes;
      return absl::OkStatus();
    }
  }
  return absl::OkStatus();  // "the client MUST ignore information types that it does not recognize"
}

absl::Status ParseContextReply(absl::Span<const uint8_t> data, MetaContext* out) {
  if (data.size() < 5) return Violation("NBD_REP_META_CONTEXT has no name");
  if (data.size() - 4 > kMaxStringSize) return TooLong("a metadata context's name", data.size() - 4);
  out->id = Load32(data.data());
  out->name = std::string(Text(data.subspan(4)));
  return absl::OkStatus();
}

std::vector<uint8_t> InfoRequestData(absl::string_view export_name) {
  assert(export_name.size() <= kMaxStringSize);
  std::vector<uint8_t> data;
  AppendString(data, export_name);
  const InfoType types[] = {InfoType::kName, InfoType::kDescription, InfoType::kBlockSize};
  Append16(data, std::size(types));
  for (const InfoType type : types) Append16(data, static_cast<uint16_t>(type));
  return data;
}

std::vector<uint8_t> ContextRequestData(absl::string_view export_name,
                                        const std::vector<std::string>& queries) {
  assert(export_name.size() <= kMaxStringSize);
  std::vector<uint8_t> data;
  AppendString(data, export_name);
  Append32(data, queries.size());
  for (const std::string& query : queries) AppendString(data, query);
  return data;
}

}  // namespace berth::nbd
