// The options of the handshake, one by one (proto.md, "Option types"). Phases and framing are in
// handshake.cc.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nbd/block_sizes.h"
#include "nbd/capabilities.h"
#include "nbd/context_selection.h"
#include "nbd/handshake.h"
#include "nbd/protocol_string.h"

namespace berth::nbd {
namespace {

// Replies of a list are written until there are this many bytes to send.
constexpr size_t kListBytes = 32 << 10;

OptionReply ReplyFor(const absl::Status& error) {
  return absl::IsResourceExhausted(error) ? OptionReply::kErrTooBig : OptionReply::kErrInvalid;
}

absl::string_view Text(const std::vector<uint8_t>& bytes) {
  return absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

BlockSizes BlockSizesOf(const Export& served) {
  return ToldBlockSizes(served.block_sizes, served.device->traits());
}

}  // namespace

void Handshake::HandleOption() {
  if (shutting_down_) return ReplyError(OptionReply::kErrShutdown, "the server is stopping");
  switch (option_.option) {
    case Option::kExportName:
      return HandleExportName();
    case Option::kInfo:
    case Option::kGo:
      return HandleInfo();
    default:
      return HandleMetaContext();
  }
}

void Handshake::HandleIgnoredOption() {
  if (option_.option == Option::kAbort) {
    ReplyHeader(OptionReply::kAck, 0);
    return Close(absl::CancelledError("the client ended the negotiation"));
  }
  if (shutting_down_) return ReplyError(OptionReply::kErrShutdown, "the server is stopping");
  if (needs_tls_) {
    return ReplyError(OptionReply::kErrTlsReqd, "this server requires TLS; start it with NBD_OPT_STARTTLS");
  }
  if (too_big_) {
    return ReplyError(
        OptionReply::kErrTooBig,
        absl::StrCat("the option has ", option_.length, " bytes, of at most ", options_.max_option_length));
  }
  const bool known = option_.option == Option::kList || option_.option == Option::kStartTls ||
                     option_.option == Option::kStructuredReply || option_.option == Option::kExtendedHeaders;
  if (known && option_.length > 0) {
    return ReplyError(OptionReply::kErrInvalid,
                      absl::StrCat("the option takes no data, and there were ", option_.length, " bytes"));
  }
  switch (option_.option) {
    case Option::kList:
      listing_ = true;
      list_started_ = false;
      listed_ = 0;
      return ContinueList();
    case Option::kStructuredReply:
      if (negotiated_.reply_style == ReplyStyle::kExtended) {
        return ReplyError(OptionReply::kErrExtHeaderReqd,
                          "extended headers were negotiated, and take the place of structured replies");
      }
      negotiated_.reply_style = ReplyStyle::kStructured;
      return ReplyHeader(OptionReply::kAck, 0);
    case Option::kExtendedHeaders:
      negotiated_.reply_style = ReplyStyle::kExtended;
      return ReplyHeader(OptionReply::kAck, 0);
    case Option::kStartTls:
      return HandleStartTls();
    default:
      return ReplyError(OptionReply::kErrUnsup, absl::StrCat("this server does not know option ",
                                                             static_cast<uint32_t>(option_.option)));
  }
}

void Handshake::HandleStartTls() {
  if (encrypted_) return ReplyError(OptionReply::kErrInvalid, "the connection is under TLS already");
  // "NOTLS mode".
  if (options_.tls == TlsMode::kOff) {
    return ReplyError(OptionReply::kErrUnsup, "this server does not offer TLS");
  }
  ReplyHeader(OptionReply::kAck, 0);
  phase_ = Phase::kUpgrade;
}

// "SELECTIVETLS mode": TLS_REQD only where the client asks about one export or for it.
void Handshake::CheckAccess(Found& found) {
  if (found.served->require_tls && !encrypted_) {
    const bool may_say =
        options_.tls == TlsMode::kAllow && (option_.option == Option::kInfo || option_.option == Option::kGo);
    found.reply = may_say ? OptionReply::kErrTlsReqd : OptionReply::kErrPolicy;
    found.error =
        absl::StrCat("export ", Quoted(found.served->name),
                     options_.tls == TlsMode::kOff ? " is for TLS alone, which this server does not offer"
                                                   : " requires TLS; start it with NBD_OPT_STARTTLS");
    found.served.reset();
  } else if (authorize_ != nullptr) {
    if (absl::Status status = authorize_(*found.served); !status.ok()) {
      found.reply = OptionReply::kErrPolicy;
      found.error = std::string(status.message());
      found.served.reset();
    }
  }
}

Handshake::Found Handshake::FindExport(absl::string_view name) {
  Found found;
  found.served = directory_.Find(name);
  if (found.served != nullptr) {
    CheckAccess(found);
    return found;
  }
  if (!name.empty()) {
    found.error = absl::StrCat("there is no export ", Quoted(name), " here; a list shows those there are");
    return found;
  }
  std::vector<std::shared_ptr<const Export>> all = directory_.List();
  if (options_.sole_export_is_default && all.size() == 1) {
    found.served = std::move(all[0]);
    CheckAccess(found);
    return found;
  }
  found.error = absl::StrCat("there is no default export among the ", all.size(),
                             " here; ask for one by its name, which a list shows");
  return found;
}

// NBD_OPT_EXPORT_NAME, which knows no errors: "the server MUST terminate the session".
void Handshake::HandleExportName() {
  // "Once extended headers are successfully requested, a client MUST NOT use NBD_OPT_EXPORT_NAME."
  if (negotiated_.reply_style == ReplyStyle::kExtended) {
    return Close(absl::InvalidArgumentError("NBD_OPT_EXPORT_NAME after NBD_OPT_EXTENDED_HEADERS"));
  }
  const absl::string_view name = Text(input_);
  if (absl::Status status = CheckExportName(name); !status.ok()) return Close(std::move(status));
  Found found = FindExport(name);
  if (found.served == nullptr) {
    return Close(found.reply == OptionReply::kErrUnknown ? absl::NotFoundError(found.error)
                                                         : absl::PermissionDeniedError(found.error));
  }
  if (found.served->block_sizes.must_be_asked_for && found.served->block_sizes.constraining()) {
    return Close(absl::PermissionDeniedError("NBD_OPT_EXPORT_NAME, which cannot ask for block sizes"));
  }
  if (absl::Status status = admit_(*found.served); !status.ok()) {
    return Close(absl::PermissionDeniedError(status.message()));
  }
  uint8_t info[kInfoExportSize];
  EncodeInfoExport({.size = ServedSize(*found.served, BlockSizesOf(*found.served)),
                    .transmission_flags = TransmissionFlags(*found.served, negotiated_.reply_style)},
                   absl::MakeSpan(info));
  // The same two values as in NBD_INFO_EXPORT, without its type.
  std::copy(info + 2, info + kInfoExportSize, Append(kInfoExportSize - 2));
  if (!no_zeroes_) Append(kExportNameReplyZeroes);
  FinishWith(std::move(found.served));
}

// NBD_OPT_INFO and NBD_OPT_GO.
void Handshake::HandleInfo() {
  absl::StatusOr<InfoRequest> request = ParseInfoRequest(input_);
  if (!request.ok()) return ReplyError(ReplyFor(request.status()), request.status().message());
  Found found = FindExport(request->name);
  if (found.served == nullptr) return ReplyError(found.reply, found.error);
  const bool go = option_.option == Option::kGo;
  if (request->wants_block_size) block_sizes_told_of_ = found.served->name;
  const BlockSizes& sizes = found.served->block_sizes;
  if (sizes.must_be_asked_for && sizes.constraining() && block_sizes_told_of_ != found.served->name) {
    ReplyBlockSizes(*found.served);
    return ReplyError(OptionReply::kErrBlockSizeReqd,
                      "the export has block sizes that a client must ask for (NBD_INFO_BLOCK_SIZE) and keep");
  }
  if (go) {
    if (absl::Status status = admit_(*found.served); !status.ok()) {
      return ReplyError(absl::IsUnavailable(status) ? OptionReply::kErrShutdown : OptionReply::kErrPolicy,
                        status.message());
    }
  }
  ReplyInfo(*found.served, *request);
  ReplyHeader(OptionReply::kAck, 0);
  if (go) FinishWith(std::move(found.served));
}

// NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
void Handshake::HandleMetaContext() {
  const bool set = option_.option == Option::kSetMetaContext;
  if (set && negotiated_.reply_style == ReplyStyle::kSimple) {
    return ReplyError(OptionReply::kErrInvalid,
                      "metadata contexts need structured replies or extended headers; negotiate them first");
  }
  absl::StatusOr<MetaContextRequest> request = ParseMetaContextRequest(input_);
  if (!request.ok()) return ReplyError(ReplyFor(request.status()), request.status().message());
  Found found = FindExport(request->name);
  if (found.served == nullptr) return ReplyError(found.reply, found.error);

  ContextSelection selection = SelectContexts(OfferedContexts(*found.served), *request, set,
                                              negotiated_.reply_style == ReplyStyle::kExtended);
  if (!selection.too_wide.empty()) {
    return ReplyError(OptionReply::kErrExtHeaderReqd,
                      absl::StrCat("metadata context ", Quoted(selection.too_wide),
                                   " has more than 32 bits; negotiate extended headers first"));
  }
  if (set && selection.contexts.size() > kMaxSelectedContexts) {
    return ReplyError(OptionReply::kErrTooBig,
                      absl::StrCat("at most ", kMaxSelectedContexts, " metadata contexts can be selected"));
  }
  for (const MetaContext& context : selection.contexts) {
    ReplyHeader(OptionReply::kMetaContext, 4 + context.name.size());
    Store32(Append(4), set ? context.id : 0);  // In a list the ID is reserved.
    AppendText(context.name);
  }
  if (set) {
    contexts_ = std::move(selection.contexts);
    // Nothing of an export is held on to until one is chosen.
    for (MetaContext& context : contexts_) context.source.reset();
    contexts_export_ = found.served->name;
  }
  ReplyHeader(OptionReply::kAck, 0);
}

bool Handshake::HasContexts(const Export& served) const {
  return !contexts_.empty() && contexts_export_ == served.name;
}

void Handshake::FinishWith(std::shared_ptr<const Export> served) {
  if (HasContexts(*served)) {
    negotiated_.contexts = ResolveContexts(std::move(contexts_), OfferedContexts(*served),
                                           negotiated_.reply_style == ReplyStyle::kExtended);
  }
  negotiated_.block_sizes = BlockSizesOf(*served);
  negotiated_.served = std::move(served);
  phase_ = Phase::kNegotiated;
}

// NBD_OPT_LIST. The directory is asked anew for every piece, so that no export is held on to, and no copy of
// all names is made, while a client takes its time.
void Handshake::ContinueList() {
  const std::vector<std::shared_ptr<const Export>> all = directory_.List();
  auto next = all.begin();
  if (list_started_) {
    next = std::upper_bound(all.begin(), all.end(), last_listed_,
                            [](const std::string& name, const auto& other) { return name < other->name; });
  }
  for (; next != all.end(); ++next) {
    if (output_.size() >= kListBytes) return;
    const Export& listed = **next;
    // What the client may not know of: "MAY omit exports that are TLS-only".
    if (listed.require_tls && !encrypted_) continue;
    if (authorize_ != nullptr && !authorize_(listed).ok()) continue;
    const absl::string_view description = CutAtCharacter(listed.description, kMaxStringSize);
    ReplyHeader(OptionReply::kServer, 4 + listed.name.size() + description.size());
    Store32(Append(4), static_cast<uint32_t>(listed.name.size()));
    AppendText(listed.name);
    AppendText(description);
    last_listed_ = listed.name;
    list_started_ = true;
    ++listed_;
  }
  listing_ = false;
  most_listed_ = std::max(most_listed_, listed_);
  ReplyHeader(OptionReply::kAck, 0);
}

void Handshake::ReplyInfo(const Export& served, const InfoRequest& request) {
  ReplyHeader(OptionReply::kInfo, kInfoExportSize);
  EncodeInfoExport(
      {.size = ServedSize(served, BlockSizesOf(served)),
       .transmission_flags = TransmissionFlags(served, negotiated_.reply_style, HasContexts(served))},
      absl::MakeSpan(Append(kInfoExportSize), kInfoExportSize));
  if (request.wants_name) ReplyInfoText(InfoType::kName, served.name);
  if (request.wants_description && !served.description.empty()) {
    ReplyInfoText(InfoType::kDescription, CutAtCharacter(served.description, kMaxStringSize));
  }
  // "The server MUST send this info if it ... intends to enforce size constraints other than the defaults."
  if (request.wants_block_size || served.block_sizes.constraining()) ReplyBlockSizes(served);
}

void Handshake::ReplyBlockSizes(const Export& served) {
  const BlockSizes sizes = BlockSizesOf(served);
  ReplyHeader(OptionReply::kInfo, kInfoBlockSizeSize);
  EncodeInfoBlockSize({sizes.minimum, sizes.preferred, sizes.maximum_payload},
                      absl::MakeSpan(Append(kInfoBlockSizeSize), kInfoBlockSizeSize));
}

void Handshake::ReplyInfoText(InfoType type, absl::string_view text) {
  ReplyHeader(OptionReply::kInfo, 2 + text.size());
  Store16(Append(2), static_cast<uint16_t>(type));
  AppendText(text);
}

}  // namespace berth::nbd
