#include "nbd/client/client_handshake.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nbd/client/option_reply.h"

namespace berth::nbd {
namespace {

constexpr uint64_t kOldstyleMagic = 0x00420281861253;  // "Oldstyle negotiation"
// More than any reply needs, as the longest holds two strings.
constexpr size_t kMaxReplyData = 64 << 10;
constexpr size_t kMaxContexts = 1024;  // Of an export.
constexpr size_t kMaxInfoReplies = 1024;

}  // namespace

ClientHandshake::ClientHandshake(ClientHandshakeOptions options) : options_(std::move(options)), run_(Run()) {
  // Starts it. Nobody awaits its end; it says it in state_.
  run_.await_suspend(std::noop_coroutine());
}

void ClientHandshake::Sent(size_t count) {
  assert(count <= output_.size() - sent_);
  sent_ += count;
  if (sent_ < output_.size()) return;
  output_.clear();
  sent_ = 0;
}

size_t ClientHandshake::wanted() const { return output_.empty() && state_ == State::kTalking ? missing_ : 0; }

void ClientHandshake::Consume(absl::Span<const uint8_t> bytes) {
  assert(bytes.size() <= wanted());
  if (bytes.empty()) return;
  input_.insert(input_.end(), bytes.begin(), bytes.end());
  missing_ -= bytes.size();
  if (missing_ == 0) std::exchange(waiter_, nullptr).resume();
}

void ClientHandshake::TlsStarted() {
  assert(state_ == State::kTls);
  state_ = State::kTalking;
  std::exchange(waiter_, nullptr).resume();
}

Task<void> ClientHandshake::Run() {
  status_ = co_await Converse();
  missing_ = 0;
  state_ = State::kDone;
}

Task<absl::Status> ClientHandshake::Converse() {
  absl::Status status = co_await Greet();
  if (status.ok() && options_.tls) status = co_await StartTls();
  if (status.ok()) status = co_await ChooseStyle();
  if (!status.ok()) co_return status;
  if (options_.goal == ClientHandshakeOptions::Goal::kTransmission) {
    agreement_.info.name = options_.export_name;
    status = co_await SelectContexts();
    if (status.ok()) status = co_await Go();
  } else {
    status = co_await List();
    // Its answer is not waited for: the server may close the connection without one.
    if (status.ok()) SendOption(Option::kAbort);
  }
  co_return status;
}

Task<absl::Status> ClientHandshake::Greet() {
  awaited_ = "its greeting";
  co_await Bytes(8);
  if (Load64(input_.data()) != kInitPassword) {
    const absl::string_view text(reinterpret_cast<const char*>(input_.data()), input_.size());
    co_return absl::InternalError(absl::StrCat("this is no NBD server: it begins with ", ServerText(text)));
  }
  co_await Bytes(8);
  const uint64_t magic = Load64(input_.data());
  if (magic == kOldstyleMagic) {
    co_return absl::InternalError(
        "the server speaks the oldstyle negotiation, which has no export names; start it in its newstyle "
        "mode, or use one of this decade");
  }
  if (magic != kOptionMagic) co_return Violation("its greeting has a wrong magic number");
  co_await Bytes(2);
  const uint16_t flags = Load16(input_.data());
  if ((flags & kFlagFixedNewstyle) == 0) {
    co_return absl::InternalError(
        "the server speaks the newstyle negotiation in its first form, not the fixed one, which cannot say "
        "what is wrong; use one of this decade");
  }
  no_zeroes_ = (flags & kFlagNoZeroes) != 0;
  output_.resize(kClientFlagsSize);
  Store32(output_.data(), kClientFlagFixedNewstyle | (no_zeroes_ ? kClientFlagNoZeroes : 0));
  co_return absl::OkStatus();
}

Task<absl::Status> ClientHandshake::StartTls() {
  SendOption(Option::kStartTls);
  absl::StatusOr<Reply> reply = co_await ReceiveReply(Option::kStartTls);
  if (!reply.ok()) co_return reply.status();
  if (reply->is_error()) {
    const absl::Status refusal = Refusal(Option::kStartTls, reply->type, reply->data);
    co_return absl::Status(refusal.code(), absl::StrCat("there is no TLS: ", refusal.message()));
  }
  if (reply->type != OptionReply::kAck) co_return Violation("NBD_OPT_STARTTLS is answered with a list");
  struct Awaiter {
    ClientHandshake* handshake;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter) const { handshake->waiter_ = waiter; }
    void await_resume() const noexcept {}
  };
  state_ = State::kTls;
  co_await Awaiter{this};
  co_return absl::OkStatus();
}

Task<absl::Status> ClientHandshake::ChooseStyle() {
  const std::pair<Option, ReplyStyle> styles[] = {{Option::kExtendedHeaders, ReplyStyle::kExtended},
                                                  {Option::kStructuredReply, ReplyStyle::kStructured}};
  for (const auto& [option, style] : styles) {
    const bool wanted =
        style == ReplyStyle::kExtended ? options_.extended_headers : options_.structured_replies;
    if (!wanted) continue;
    const absl::StatusOr<bool> accepted = co_await Accepts(option);
    if (!accepted.ok()) co_return accepted.status();
    if (*accepted) {
      agreement_.style = style;
      break;
    }
  }
  co_return absl::OkStatus();
}

Task<absl::StatusOr<bool>> ClientHandshake::Accepts(Option option) {
  SendOption(option);
  absl::StatusOr<Reply> reply = co_await ReceiveReply(option);
  if (!reply.ok()) co_return reply.status();
  if (reply->type == OptionReply::kAck) co_return true;
  if (!reply->is_error()) co_return Violation(absl::StrCat(OptionName(option), " is answered with a list"));
  // These would be said to every option that follows.
  if (reply->type == OptionReply::kErrTlsReqd || reply->type == OptionReply::kErrShutdown) {
    co_return Refusal(option, reply->type, reply->data);
  }
  co_return false;
}

Task<absl::Status> ClientHandshake::SelectContexts() {
  if (agreement_.style == ReplyStyle::kSimple || options_.contexts.empty()) co_return absl::OkStatus();
  co_return co_await AskContexts(Option::kSetMetaContext, options_.contexts, agreement_.info);
}

Task<absl::Status> ClientHandshake::Go() {
  absl::Status status = co_await AskInfo(Option::kGo, agreement_.info);
  // With extended headers NBD_OPT_EXPORT_NAME is forbidden, and NBD_OPT_GO is there.
  if (absl::IsUnimplemented(status) && agreement_.style != ReplyStyle::kExtended) {
    status = co_await GoByExportName();
  }
  co_return status;
}

Task<absl::Status> ClientHandshake::GoByExportName() {
  const std::string& name = options_.export_name;
  SendOption(Option::kExportName,
             absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(name.data()), name.size()));
  // All that an old server can do to refuse is to close the connection.
  awaited_ = "the answer to NBD_OPT_EXPORT_NAME, where that can mean that it has no such export";
  std::vector<uint8_t> info(2);
  co_await Bytes(kInfoExportSize - info.size() + (no_zeroes_ ? 0 : kExportNameReplyZeroes));
  info.insert(info.end(), input_.begin(), input_.begin() + kInfoExportSize - 2);
  co_return ParseInfoExport(info, &agreement_.info);
}

Task<absl::Status> ClientHandshake::AskInfo(Option option, ExportInfo& info) {
  SendOption(option, InfoRequestData(info.name));
  bool has_export = false;
  for (size_t replies = 0; replies < kMaxInfoReplies; ++replies) {
    absl::StatusOr<Reply> reply = co_await ReceiveReply(option);
    if (!reply.ok()) co_return reply.status();
    if (reply->is_error()) co_return Refusal(option, reply->type, reply->data);
    if (reply->type == OptionReply::kAck) {
      if (!has_export) {
        co_return Violation(absl::StrCat(OptionName(option), " is accepted without NBD_INFO_EXPORT"));
      }
      co_return absl::OkStatus();
    }
    if (reply->type != OptionReply::kInfo) {
      co_return Violation(absl::StrCat(OptionName(option), " is answered with a reply of type ",
                                       static_cast<uint32_t>(reply->type)));
    }
    absl::Status parsed = ParseInfoReply(reply->data, &info, &has_export);
    if (!parsed.ok()) co_return parsed;
  }
  co_return absl::ResourceExhaustedError(
      absl::StrCat("the server sends more than ", kMaxInfoReplies, " replies to ", OptionName(option)));
}

Task<absl::Status> ClientHandshake::AskContexts(Option option, const std::vector<std::string>& queries,
                                                ExportInfo& info) {
  SendOption(option, ContextRequestData(info.name, queries));
  std::vector<MetaContext> contexts;
  while (true) {
    absl::StatusOr<Reply> reply = co_await ReceiveReply(option);
    if (!reply.ok()) co_return reply.status();
    if (reply->type == OptionReply::kAck) break;
    if (reply->is_error()) {
      if (reply->type != OptionReply::kErrTlsReqd && reply->type != OptionReply::kErrShutdown) {
        co_return absl::OkStatus();  // "the client MUST disregard any context replies"
      }
      co_return Refusal(option, reply->type, reply->data);
    }
    MetaContext context;
    absl::Status parsed =
        reply->type == OptionReply::kMetaContext
            ? ParseContextReply(reply->data, &context)
            : Violation(absl::StrCat(OptionName(option), " is answered with a reply of type ",
                                     static_cast<uint32_t>(reply->type)));
    if (!parsed.ok()) co_return parsed;
    if (contexts.size() == kMaxContexts) {
      co_return absl::ResourceExhaustedError(
          absl::StrCat("the server has more than ", kMaxContexts, " metadata contexts"));
    }
    const auto is_same = [&context](const MetaContext& other) { return other.id == context.id; };
    if (option == Option::kSetMetaContext && std::any_of(contexts.begin(), contexts.end(), is_same)) {
      co_return Violation(absl::StrCat("two metadata contexts have the ID ", context.id));
    }
    contexts.push_back(std::move(context));
  }
  info.contexts = std::move(contexts);
  co_return absl::OkStatus();
}

Task<absl::Status> ClientHandshake::List() {
  SendOption(Option::kList);
  while (true) {
    absl::StatusOr<Reply> reply = co_await ReceiveReply(Option::kList);
    if (!reply.ok()) co_return reply.status();
    if (reply->is_error()) co_return Refusal(Option::kList, reply->type, reply->data);
    if (reply->type == OptionReply::kAck) break;
    if (list_.size() == options_.max_exports) {
      co_return absl::ResourceExhaustedError(
          absl::StrCat("the server has more than ", options_.max_exports, " exports"));
    }
    list_.emplace_back();
    absl::Status parsed = reply->type == OptionReply::kServer
                              ? ParseServerReply(reply->data, &list_.back().info)
                              : Violation(absl::StrCat("NBD_OPT_LIST is answered with a reply of type ",
                                                       static_cast<uint32_t>(reply->type)));
    if (!parsed.ok()) co_return parsed;
  }
  for (ListedExport& listed : list_) {
    absl::Status described = co_await Describe(listed);
    if (!described.ok()) co_return described;
  }
  co_return absl::OkStatus();
}

// A refusal is the listed export's; a server that is none any more is the list's.
Task<absl::Status> ClientHandshake::Describe(ListedExport& listed) {
  ExportInfo told = listed.info;
  listed.status = co_await AskInfo(Option::kInfo, told);
  switch (listed.status.code()) {
    case absl::StatusCode::kOk:
      break;
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
      co_return listed.status;
    default:
      co_return absl::OkStatus();
  }
  // Asked by the name that the list has, which is the one to be shown.
  std::swap(told.name, listed.info.name);
  listed.info = std::move(told);
  if (agreement_.style == ReplyStyle::kSimple) co_return absl::OkStatus();
  const std::vector<std::string> all;
  co_return co_await AskContexts(Option::kListMetaContext, all, listed.info);
}

Task<absl::StatusOr<ClientHandshake::Reply>> ClientHandshake::ReceiveReply(Option option) {
  awaited_ = absl::StrCat("the answer to ", OptionName(option));
  co_await Bytes(kOptionReplyHeaderSize);
  OptionReplyHeader header;
  if (!DecodeOptionReplyHeader(input_, &header)) {
    co_return Violation(absl::StrCat("the answer to ", OptionName(option), " has a wrong magic number"));
  }
  if (header.option != option) {
    co_return Violation(
        absl::StrCat("it answers ", OptionName(header.option), ", where ", OptionName(option), " was asked"));
  }
  if (header.length > kMaxReplyData) {
    co_return Violation(
        absl::StrCat("a reply to ", OptionName(option), " of ", header.length, " bytes is too long"));
  }
  if (received_ + header.length > options_.max_bytes) {
    co_return absl::ResourceExhaustedError(
        absl::StrCat("the server sends more than ", options_.max_bytes, " bytes before the first request"));
  }
  co_await Bytes(header.length);
  Reply reply;
  reply.type = header.type;
  reply.data = std::move(input_);
  input_.clear();
  if (reply.type == OptionReply::kAck && !reply.data.empty()) {
    co_return Violation(absl::StrCat("the acknowledgement of ", OptionName(option), " carries data"));
  }
  co_return reply;
}

void ClientHandshake::SendOption(Option option, absl::Span<const uint8_t> data) {
  const size_t begin = output_.size();
  output_.resize(begin + kOptionHeaderSize);
  EncodeOptionHeader({option, static_cast<uint32_t>(data.size())}, absl::MakeSpan(output_).subspan(begin));
  output_.insert(output_.end(), data.begin(), data.end());
}

}  // namespace berth::nbd
