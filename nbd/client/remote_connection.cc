#include "nbd/client/remote_connection.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/monotonic_clock.h"

namespace berth::nbd {
namespace {

// Compact requests have 32 bits for a length. This is the largest multiple of any block size in them.
constexpr uint64_t kMaxCompactEffect = uint64_t{1} << 31;
constexpr size_t kZeroBuffer = size_t{1} << 20;  // For servers that cannot write zeroes themselves.

constexpr bool IsFua(WriteFlags flags) { return flags == WriteFlags::kFua; }

const uint8_t* Zeroes() {
  static const uint8_t* const zeroes = new uint8_t[kZeroBuffer]();
  return zeroes;
}

uint64_t MaxPayload(const ExportInfo& info) {
  if (!info.block_sizes.has_value()) return kMaxPayload;
  const uint64_t maximum = std::min(info.block_sizes->maximum_payload, kMaxPayload);
  return maximum - maximum % info.block_sizes->minimum;
}

}  // namespace

// Awaited: from the making of a request to its answer.
class RemoteConnection::Exchange {
 public:
  Exchange(RemoteConnection& client, PendingRequest& request) : client_(client), request_(request) {}

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> waiter) {
    request_.waiter = waiter;
    return client_.Start(request_);
  }
  void await_resume() const noexcept {}

 private:
  RemoteConnection& client_;
  PendingRequest& request_;
};

Task<absl::StatusOr<std::unique_ptr<RemoteConnection>>> RemoteConnection::Connect(
    Reactor& reactor, BlockingPool& pool, const Uri& uri, const RemoteOptions& options) {
  absl::StatusOr<Connection> connection = co_await Dial(reactor, pool, uri, options.dial);
  if (!connection.ok()) co_return connection.status();
  co_return std::make_unique<RemoteConnection>(reactor, *std::move(connection), options);
}

RemoteConnection::RemoteConnection(Reactor& reactor, Connection connection, const RemoteOptions& options)
    : reactor_(reactor),
      transport_(std::move(connection.transport)),
      info_(std::move(connection.agreement.info)),
      style_(connection.agreement.style),
      options_(options),
      alignment_(info_.block_sizes.has_value() ? info_.block_sizes->minimum : 1),
      max_payload_(MaxPayload(info_)),
      operations_(reactor),
      sending_(reactor),
      receiving_(reactor),
      sender_(
          reactor, sending_, *transport_, style_,
          [this](PendingRequest& request) {
            request.sent = true;
            if (request.answered) Complete(request);
          },
          [this](int error) {
            Break(absl::UnavailableError(absl::StrCat("the connection broke: ", strerror(-error))));
          }),
      reader_(*transport_, style_, [this](uint64_t cookie) -> PendingRequest* {
        const auto found = pending_.find(cookie);
        return found == pending_.end() || found->second->answered ? nullptr : found->second;
      }) {
  for (const MetaContext& context : info_.contexts) {
    if (context.name == kBaseAllocation) allocation_id_ = context.id;
  }
  Spawn(ReceiveReplies(receiving_.Enter()));
}

RemoteConnection::~RemoteConnection() { assert(receiving_.inside() == 0 && pending_.empty()); }

// ---- Requests and replies.

bool RemoteConnection::Start(PendingRequest& request) {
  if (!status_.ok() || server_stopping_ || said_goodbye_) return false;
  request.cookie = next_cookie_++;
  request.deadline_ns = MonotonicNanoseconds() +
                        absl::ToInt64Nanoseconds(std::min(options_.request_timeout, absl::Hours(24 * 365)));
  pending_.emplace(request.cookie, &request);
  sender_.Send(request);
  Watch();
  return true;
}

Task<IoResult> RemoteConnection::Perform(PendingRequest& request) {
  co_await Exchange(*this, request);
  if (!request.answered) {
    co_return IoResult::Error(status_.ok() || server_stopping_ ? ESHUTDOWN : EIO);
  }
  if (request.error == Error::kNone) co_return IoResult::Ok();
  last_failure_ = {request.command, request.offset,  request.length,
                   request.error,   request.message, request.error_offset};
  co_return IoResult::Error(ErrnoFromError(request.error));
}

// The operation goes on in a later turn; until then its request is nobody's.
void RemoteConnection::Complete(PendingRequest& request) {
  pending_.erase(request.cookie);
  if (request.error == Error::kShutdown) server_stopping_ = true;
  reactor_.Schedule(request.waiter);
  // "If the client receives an NBD_ESHUTDOWN error it MUST initiate a soft disconnect."
  if (server_stopping_ && pending_.empty()) SaidGoodbye();
}

void RemoteConnection::SaidGoodbye() {
  if (std::exchange(said_goodbye_, true)) return;
  sender_.SendDisconnect();
}

Task<void> RemoteConnection::ReceiveReplies(Gate::Holder) {
  while (true) {
    absl::StatusOr<PendingRequest*> answered = co_await reader_.Next();
    if (!answered.ok()) {
      // After a good-bye the end of the stream is what was asked for.
      if (!said_goodbye_ || !absl::IsUnavailable(answered.status())) Break(answered.status());
      if (said_goodbye_ && server_stopping_ && !disconnecting_) {
        Break(absl::UnavailableError("the server is about to stop (NBD_ESHUTDOWN)"));
      }
      break;
    }
    (*answered)->answered = true;
    // A server may answer a write before it has taken the data, which are still being sent.
    if ((*answered)->sent) Complete(**answered);
  }
  // Nothing is received into the operations' buffers any more; soon nothing is sent from them.
  co_await sending_.Close();
  FailAll();
}

void RemoteConnection::Break(absl::Status reason) {
  if (status_.ok()) status_ = std::move(reason);
  transport_->Shutdown();
}

void RemoteConnection::FailAll() {
  for (const auto& [cookie, request] : std::exchange(pending_, {})) {
    request->answered = false;
    reactor_.Schedule(request->waiter);
  }
}

// One timer for the oldest request, as all have the same time.
void RemoteConnection::Watch() {
  if (watching_ || pending_.empty() || !status_.ok()) return;
  watching_ = true;
  const int64_t left = pending_.begin()->second->deadline_ns - MonotonicNanoseconds();
  watch_ = Reactor::Timer(reactor_, absl::Nanoseconds(left), [this] {
    watching_ = false;
    if (pending_.empty() || pending_.begin()->second->deadline_ns > MonotonicNanoseconds()) return Watch();
    Break(absl::DeadlineExceededError(
        absl::StrCat("a request was not answered within ", absl::FormatDuration(options_.request_timeout))));
  });
}

Task<void> RemoteConnection::Disconnect() {
  disconnecting_ = true;
  co_await operations_.Close();
  if (status_.ok()) SaidGoodbye();
  // The server closes the connection, which ReceiveReplies() sees.
  const Reactor::Timer timer(reactor_, options_.disconnect_timeout, [this] { transport_->Shutdown(); });
  co_await receiving_.Close();
  watch_.Cancel();
}

// ---- Operations.

IoResult RemoteConnection::CheckRange(uint64_t offset, uint64_t length) const {
  if (disconnecting_) return IoResult::Error(ESHUTDOWN);
  const bool inside = offset <= info_.size && length <= info_.size - offset;
  const bool aligned = offset % alignment_ == 0 && length % alignment_ == 0;
  return inside && aligned ? IoResult::Ok() : IoResult::Error(EINVAL);
}

IoResult RemoteConnection::CheckWrite(uint64_t offset, uint64_t length) const {
  const IoResult checked = CheckRange(offset, length);
  return checked.ok() && info_.Has(kFlagReadOnly) ? IoResult::Error(EPERM) : checked;
}

Task<IoResult> RemoteConnection::Read(uint64_t offset, absl::Span<uint8_t> out) {
  if (IoResult checked = CheckRange(offset, out.size()); !checked.ok()) co_return checked;
  const Gate::Holder holder = operations_.Enter();
  while (!out.empty()) {
    const absl::Span<uint8_t> piece = out.first(std::min<uint64_t>(out.size(), max_payload_));
    PendingRequest request(Command::kRead, 0, offset, piece.size());
    request.data = piece;
    const IoResult result = co_await Perform(request);
    if (!result.ok()) co_return result;
    offset += piece.size();
    out.remove_prefix(piece.size());
  }
  co_return IoResult::Ok();
}

Task<IoResult> RemoteConnection::Write(uint64_t offset, absl::Span<const uint8_t> data, WriteFlags flags) {
  if (IoResult checked = CheckWrite(offset, data.size()); !checked.ok()) co_return checked;
  const Gate::Holder holder = operations_.Enter();
  co_return co_await WriteChecked(offset, data, flags);
}

Task<IoResult> RemoteConnection::WriteChecked(uint64_t offset, absl::Span<const uint8_t> data,
                                              WriteFlags flags) {
  const bool fua = IsFua(flags) && info_.Has(kFlagSendFua);
  while (!data.empty()) {
    const absl::Span<const uint8_t> piece = data.first(std::min<uint64_t>(data.size(), max_payload_));
    PendingRequest request(Command::kWrite, fua ? kCommandFlagFua : 0, offset, piece.size());
    request.payload = piece;
    const IoResult result = co_await Perform(request);
    if (!result.ok()) co_return result;
    offset += piece.size();
    data.remove_prefix(piece.size());
  }
  if (IsFua(flags) && !fua) co_return co_await FlushChecked();
  co_return IoResult::Ok();
}

Task<IoResult> RemoteConnection::Flush() {
  if (disconnecting_) co_return IoResult::Error(ESHUTDOWN);
  const Gate::Holder holder = operations_.Enter();
  co_return co_await FlushChecked();
}

Task<IoResult> RemoteConnection::FlushChecked() {
  if (!info_.Has(kFlagSendFlush)) co_return IoResult::Ok();  // Nothing that it could have kept back.
  PendingRequest request(Command::kFlush, 0, 0, 0);
  co_return co_await Perform(request);
}

uint64_t RemoteConnection::EffectLimit() const {
  if (effects_limited_) return max_payload_;
  return style_ == ReplyStyle::kExtended ? INT64_MAX : kMaxCompactEffect;
}

Task<IoResult> RemoteConnection::PerformEffect(Command command, uint16_t flags, uint64_t offset,
                                               uint64_t length) {
  while (length > 0) {
    const uint64_t piece = std::min(length, EffectLimit());
    // Of pieces a later one could be refused, when the others have changed something.
    if ((flags & kCommandFlagFastZero) != 0 && piece < length) co_return IoResult::Error(ENOTSUP);
    PendingRequest request(command, flags, offset, piece);
    const IoResult result = co_await Perform(request);
    const bool too_large = result.error == EOVERFLOW || result.error == EINVAL;
    if (too_large && piece > max_payload_) {
      // "MAY reply with an NBD_EOVERFLOW or NBD_EINVAL error if the oversize request would require too many
      // server resources".
      effects_limited_ = true;
      continue;
    }
    if (!result.ok()) co_return result;
    offset += piece;
    length -= piece;
  }
  co_return IoResult::Ok();
}

Task<IoResult> RemoteConnection::Zero(uint64_t offset, uint64_t length, ZeroFlags flags) {
  if (IoResult checked = CheckWrite(offset, length); !checked.ok()) co_return checked;
  const Gate::Holder holder = operations_.Enter();
  const bool fast_only = berth::Has(flags, ZeroFlags::kFastOnly);
  if (fast_only && !info_.Has(kFlagSendFastZero)) co_return IoResult::Error(ENOTSUP);
  if (!info_.Has(kFlagSendWriteZeroes)) co_return co_await WriteZeroes(offset, length, flags);
  const bool fua = berth::Has(flags, ZeroFlags::kFua);
  const bool can_fua = info_.Has(kFlagSendFua);
  uint16_t command_flags = fua && can_fua ? kCommandFlagFua : 0;
  if (berth::Has(flags, ZeroFlags::kNoUnmap)) command_flags |= kCommandFlagNoHole;
  if (fast_only) command_flags |= kCommandFlagFastZero;
  const IoResult result = co_await PerformEffect(Command::kWriteZeroes, command_flags, offset, length);
  if (result.ok() && fua && !can_fua) co_return co_await FlushChecked();
  co_return result;
}

Task<IoResult> RemoteConnection::WriteZeroes(uint64_t offset, uint64_t length, ZeroFlags flags) {
  const WriteFlags write_flags = berth::Has(flags, ZeroFlags::kFua) ? WriteFlags::kFua : WriteFlags::kNone;
  while (length > 0) {
    const uint64_t piece = std::min<uint64_t>(length, kZeroBuffer);
    const IoResult result = co_await WriteChecked(offset, {Zeroes(), piece}, write_flags);
    if (!result.ok()) co_return result;
    offset += piece;
    length -= piece;
  }
  co_return IoResult::Ok();
}

Task<IoResult> RemoteConnection::Discard(uint64_t offset, uint64_t length) {
  if (IoResult checked = CheckWrite(offset, length); !checked.ok()) co_return checked;
  const Gate::Holder holder = operations_.Enter();
  if (!info_.Has(kFlagSendTrim)) co_return IoResult::Ok();
  co_return co_await PerformEffect(Command::kTrim, 0, offset, length);
}

Task<IoResult> RemoteConnection::Prefetch(uint64_t offset, uint64_t length) {
  if (IoResult checked = CheckRange(offset, length); !checked.ok()) co_return checked;
  const Gate::Holder holder = operations_.Enter();
  if (!info_.Has(kFlagSendCache)) co_return IoResult::Ok();
  co_return co_await PerformEffect(Command::kCache, 0, offset, length);
}

Task<IoResult> RemoteConnection::Extents(uint64_t offset, uint64_t length, std::vector<Extent>* out) {
  if (IoResult checked = CheckRange(offset, length); !checked.ok()) co_return checked;
  if (!allocation_id_.has_value()) {
    out->push_back({length, true, false});
    co_return IoResult::Ok();
  }
  std::vector<ContextStatus> status;
  const IoResult result = co_await BlockStatus(offset, length, false, {&*allocation_id_, 1}, &status);
  if (!result.ok()) co_return result;
  const size_t begin = out->size();
  for (const ExtentDescriptor& said : status[0].extents) {
    const Extent extent = {std::min(said.length, length), (said.status & kStateHole) == 0,
                           (said.status & kStateZero) != 0};
    if (extent.length == 0) break;
    length -= extent.length;
    if (out->size() > begin && out->back().SameKind(extent)) {
      out->back().length += extent.length;
    } else {
      out->push_back(extent);
    }
  }
  co_return IoResult::Ok();
}

Task<IoResult> RemoteConnection::BlockStatus(uint64_t offset, uint64_t length, bool one,
                                             absl::Span<const uint32_t> context_ids,
                                             std::vector<ContextStatus>* out) {
  if (IoResult checked = CheckRange(offset, length); !checked.ok()) co_return checked;
  const Gate::Holder holder = operations_.Enter();
  if (info_.contexts.empty()) co_return IoResult::Error(ENOTSUP);
  if (length == 0) co_return IoResult::Error(EINVAL);
  const auto selected = [this](uint32_t id) {
    return std::any_of(info_.contexts.begin(), info_.contexts.end(),
                       [id](const MetaContext& context) { return context.id == id; });
  };
  const std::vector<uint32_t> wanted(context_ids.begin(), context_ids.end());
  if (!std::all_of(wanted.begin(), wanted.end(), selected)) co_return IoResult::Error(EINVAL);

  if (style_ != ReplyStyle::kExtended) length = std::min(length, kMaxCompactEffect);
  PendingRequest request(Command::kBlockStatus, one ? kCommandFlagReqOne : 0, offset, length);
  std::vector<uint8_t> query;
  if (wanted.empty() || wanted.size() == info_.contexts.size() || !info_.Has(kFlagBlockStatusPayload) ||
      style_ != ReplyStyle::kExtended) {
    for (const MetaContext& context : info_.contexts) request.context_ids.push_back(context.id);
  } else {
    request.context_ids = wanted;
    query.resize(kBlockStatusQuerySize + wanted.size() * kContextIdSize);
    Store64(query.data(), length);
    for (size_t i = 0; i < wanted.size(); ++i) {
      Store32(&query[kBlockStatusQuerySize + i * kContextIdSize], wanted[i]);
    }
    request.payload = query;
  }
  const IoResult result = co_await Perform(request);
  if (!result.ok()) co_return result;
  for (ContextStatus& status : request.status) {
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), status.context_id) != wanted.end()) {
      out->push_back(std::move(status));
    }
  }
  co_return IoResult::Ok();
}

}  // namespace berth::nbd
