#include "nbd/handshake.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nbd/protocol_string.h"

namespace berth::nbd {
namespace {

constexpr uint32_t kKnownClientFlags = kClientFlagFixedNewstyle | kClientFlagNoZeroes;

// Whether HandleOption() looks at the option's data; otherwise it is not kept.
bool HasData(Option option) {
  switch (option) {
    case Option::kExportName:
    case Option::kInfo:
    case Option::kGo:
    case Option::kListMetaContext:
    case Option::kSetMetaContext:
      return true;
    default:
      return false;
  }
}

}  // namespace

Handshake::Handshake(const ExportDirectory& directory, const HandshakeOptions& options, Admit admit,
                     Authorize authorize)
    : directory_(directory), options_(options), admit_(std::move(admit)), authorize_(std::move(authorize)) {
  EncodeGreeting({.handshake_flags = kFlagFixedNewstyle | kFlagNoZeroes},
                 absl::MakeSpan(Append(kGreetingSize), kGreetingSize));
  Expect(Phase::kClientFlags, kClientFlagsSize);
}

absl::Span<const uint8_t> Handshake::output() const { return absl::MakeConstSpan(output_).subspan(sent_); }

void Handshake::Sent(size_t count) {
  assert(count <= output_.size() - sent_);
  sent_ += count;
  if (sent_ < output_.size()) return;
  output_.clear();
  sent_ = 0;
  if (listing_) ContinueList();
}

size_t Handshake::wanted() const {
  if (finished() || !output_.empty()) return 0;
  return static_cast<size_t>(missing_);
}

size_t Handshake::Consume(absl::Span<const uint8_t> bytes) {
  size_t consumed = 0;
  while (consumed < bytes.size() && wanted() > 0) {
    const size_t count = std::min(bytes.size() - consumed, wanted());
    if (phase_ != Phase::kIgnoredData) {
      const uint8_t* from = bytes.data() + consumed;
      input_.insert(input_.end(), from, from + count);
    }
    consumed += count;
    missing_ -= count;
    if (missing_ == 0) Advance();
  }
  return consumed;
}

void Handshake::Expect(Phase phase, uint64_t bytes) {
  phase_ = phase;
  missing_ = bytes;
  input_.clear();
  if (missing_ == 0) Advance();
}

void Handshake::Advance() {
  switch (phase_) {
    case Phase::kClientFlags:
      return HandleClientFlags();
    case Phase::kOptionHeader:
      return HandleOptionHeader();
    case Phase::kOptionData:
    case Phase::kIgnoredData:
      phase_ == Phase::kOptionData ? HandleOption() : HandleIgnoredOption();
      if (!finished() && !wants_tls()) Expect(Phase::kOptionHeader, kOptionHeaderSize);
      return;
    case Phase::kUpgrade:
    case Phase::kNegotiated:
    case Phase::kClosed:
      return;
  }
}

// NBD_OPT_STARTTLS: the client's flags stay, as it does not send them again, and everything else goes.
void Handshake::TlsStarted() {
  encrypted_ = true;
  negotiated_ = Negotiated();
  contexts_.clear();
  contexts_export_.clear();
  Expect(Phase::kOptionHeader, kOptionHeaderSize);
}

void Handshake::Close(absl::Status reason) {
  phase_ = Phase::kClosed;
  close_reason_ = std::move(reason);
}

// "Client flags".
void Handshake::HandleClientFlags() {
  const uint32_t flags = Load32(input_.data());
  if ((flags & ~kKnownClientFlags) != 0) {
    return Close(absl::InvalidArgumentError(
        absl::StrCat("unknown client flags 0x", absl::Hex(flags & ~kKnownClientFlags))));
  }
  fixed_newstyle_ = (flags & kClientFlagFixedNewstyle) != 0;
  no_zeroes_ = (flags & kClientFlagNoZeroes) != 0;
  Expect(Phase::kOptionHeader, kOptionHeaderSize);
}

void Handshake::HandleOptionHeader() {
  if (!DecodeOptionHeader(input_, &option_)) {
    return Close(absl::InvalidArgumentError("an option does not begin with its magic number"));
  }
  const uint64_t most = options_.max_options + most_listed_ * HandshakeOptions::kOptionsOfListed;
  if (++option_count_ > most) {
    return Close(absl::ResourceExhaustedError(
        absl::StrCat("more than ", most, " options before an export was chosen")));
  }
  // "Newstyle negotiation": "In non-fixed newstyle only one option can be set".
  if (!fixed_newstyle_ && option_.option != Option::kExportName) {
    return Close(
        absl::InvalidArgumentError(absl::StrCat("option ", static_cast<uint32_t>(option_.option),
                                                " from a client that does not speak fixed newstyle")));
  }
  // Replaced "including when this command fails".
  if (option_.option == Option::kSetMetaContext) contexts_.clear();

  too_big_ = HasData(option_.option) && option_.length > options_.max_option_length;
  needs_tls_ = options_.tls == TlsMode::kRequire && !encrypted_ && option_.option != Option::kStartTls &&
               option_.option != Option::kAbort;
  if (option_.option == Option::kExportName && needs_tls_ && !shutting_down_) {
    return Close(
        absl::PermissionDeniedError("the client asked for an export without TLS, which is required"));
  }
  if (option_.option == Option::kExportName && (shutting_down_ || option_.length > kMaxStringSize)) {
    return Close(shutting_down_ ? absl::UnavailableError("the server is stopping")
                                : absl::InvalidArgumentError(
                                      absl::StrCat("the export's name has ", option_.length, " bytes")));
  }
  if (HasData(option_.option) && !too_big_ && !needs_tls_) return Expect(Phase::kOptionData, option_.length);
  ignored_bytes_ += option_.length;
  if (ignored_bytes_ > options_.max_ignored_bytes) {
    return Close(
        absl::ResourceExhaustedError(absl::StrCat("option ", static_cast<uint32_t>(option_.option), " with ",
                                                  option_.length, " bytes that nobody can want")));
  }
  Expect(Phase::kIgnoredData, option_.length);
}

// Adds zeroes to the output; returns where they are.
uint8_t* Handshake::Append(size_t size) {
  output_.resize(output_.size() + size);
  return output_.data() + output_.size() - size;
}

void Handshake::AppendText(absl::string_view text) {
  output_.insert(output_.end(), text.begin(), text.end());
}

void Handshake::ReplyHeader(OptionReply type, size_t length) {
  EncodeOptionReplyHeader({.option = option_.option, .type = type, .length = static_cast<uint32_t>(length)},
                          absl::MakeSpan(Append(kOptionReplyHeaderSize), kOptionReplyHeaderSize));
}

void Handshake::ReplyError(OptionReply type, absl::string_view text) {
  const absl::string_view cut = CutAtCharacter(text, kMaxStringSize);
  ReplyHeader(type, cut.size());
  AppendText(cut);
}

}  // namespace berth::nbd
