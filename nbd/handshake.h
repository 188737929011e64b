// Handshake: the server's side of the fixed newstyle negotiation (proto.md, "Handshake"), as a state machine.
//
// It does no I/O: its owner sends what output() holds, receives at most wanted() bytes, and hands them to
// Consume(), in pieces of any size. Reading no more than wanted() keeps what follows the negotiation in the
// socket, where the transmission phase finds it; it is also what makes the upgrade to TLS safe, as not one
// byte that was sent in the clear can be taken for one that came encrypted.
//
// NBD_OPT_STARTTLS: once it is answered and the answer sent, wants_tls() says so, and the owner puts the
// socket under TLS and calls TlsStarted(). Nothing that was negotiated before survives that.
//
// Memory is bounded by HandshakeOptions::max_option_length and some 64 KiB of replies: a client that asks and
// does not listen is not read from, and a list of exports is written as it is sent.
//
// Thread: confined to one. Lifetime: the directory outlives it. It holds no reference to an export between
// calls, until one is negotiated.
#ifndef BERTH_NBD_HANDSHAKE_H_
#define BERTH_NBD_HANDSHAKE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "nbd/export.h"
#include "nbd/negotiated.h"
#include "nbd/option_data.h"
#include "nbd/wire.h"

namespace berth::nbd {

// proto.md, "Server-side requirements".
enum class TlsMode : uint8_t {
  kOff,      // NOTLS.
  kAllow,    // SELECTIVETLS: exports with `require_tls` are for clients under TLS, the others for all.
  kRequire,  // FORCEDTLS.
};

struct HandshakeOptions {
  static constexpr uint32_t kOptionsOfListed = 4;

  TlsMode tls = TlsMode::kOff;
  // A client that sends more options than this is cut off. One that had a list may ask after each export in
  // it, with kOptionsOfListed more for each.
  uint32_t max_options = 1024;
  // Data that an option may carry, in bytes; at least 4,096 + 6. Longer is answered NBD_REP_ERR_TOO_BIG.
  uint32_t max_option_length = 64 << 10;
  // Bytes that are read only to be thrown away, over all options; a client that needs more is cut off.
  uint64_t max_ignored_bytes = 1 << 20;
  // Which export the empty name means: the one with the empty name, as in qemu and nbdkit. With this, where
  // there is none and the directory has exactly one export, that one. Only for a directory that never
  // changes: a client that comes back would find another disk under the same name.
  bool sole_export_is_default = false;
};

class Handshake {
 public:
  // Asked before an export is given to the client. An error refuses it, and its text is the client's answer
  // (NBD_REP_ERR_POLICY; where it is UNAVAILABLE, NBD_REP_ERR_SHUTDOWN). Must not block.
  using Admit = absl::AnyInvocable<absl::Status(const Export&)>;

  // Asked whether the client may know of an export at all; the error's text is the answer to one that names
  // it (NBD_REP_ERR_POLICY), and a list leaves it out. Must not block.
  using Authorize = absl::AnyInvocable<absl::Status(const Export&)>;

  // A new connection, to which the greeting is to be sent. Without `authorize` every export may be known.
  Handshake(const ExportDirectory& directory, const HandshakeOptions& options, Admit admit,
            Authorize authorize = nullptr);
  Handshake(const Handshake&) = delete;
  Handshake& operator=(const Handshake&) = delete;

  // Bytes to send; they stay until Sent(). What is left of them is to be sent even when finished().
  absl::Span<const uint8_t> output() const;
  // The first `count` bytes of output() were sent.
  void Sent(size_t count);

  // The most bytes to receive now: 0 while there is output, and once finished.
  size_t wanted() const;
  // Takes bytes that were received; returns how many of them, which is all where they were at most wanted().
  size_t Consume(absl::Span<const uint8_t> bytes);

  // The client was told to begin the TLS handshake, which the owner does once there is no output.
  bool wants_tls() const { return phase_ == Phase::kUpgrade; }
  // From here on all bytes come and go under TLS.
  void TlsStarted();

  // The server is stopping: from now on options are answered NBD_REP_ERR_SHUTDOWN.
  void BeginShutdown() { shutting_down_ = true; }

  // Nothing more will be read. The connection goes on to the transmission phase, or is closed.
  bool finished() const { return phase_ == Phase::kNegotiated || phase_ == Phase::kClosed; }
  bool negotiated() const { return phase_ == Phase::kNegotiated; }

  // What was agreed on, once negotiated(). Once.
  Negotiated TakeNegotiated() { return std::move(negotiated_); }

  // Why the connection is to be closed, once finished() and not negotiated(): CANCELLED where the client said
  // good-bye, NOT_FOUND, PERMISSION_DENIED or UNAVAILABLE where it asked by NBD_OPT_EXPORT_NAME for what it
  // cannot have, INVALID_ARGUMENT where it broke the protocol, RESOURCE_EXHAUSTED where it went past a limit.
  const absl::Status& close_reason() const { return close_reason_; }

 private:
  enum class Phase : uint8_t {
    kClientFlags,
    kOptionHeader,
    kOptionData,
    kIgnoredData,
    kUpgrade,
    kNegotiated,
    kClosed,
  };

  void Expect(Phase phase, uint64_t bytes);
  void Advance();
  void Close(absl::Status reason);

  void HandleClientFlags();
  void HandleOptionHeader();
  // The current option, with its data in input_, or with its data thrown away.
  void HandleOption();
  void HandleIgnoredOption();
  void HandleExportName();
  void HandleInfo();
  void HandleMetaContext();

  struct Found {
    std::shared_ptr<const Export> served;
    // For the client, where there is none.
    OptionReply reply = OptionReply::kErrUnknown;
    std::string error;
  };
  Found FindExport(absl::string_view name);
  // Why the client may not have the export that was found.
  void CheckAccess(Found& found);
  void HandleStartTls();
  // The client selected contexts, and of this export.
  bool HasContexts(const Export& served) const;
  void FinishWith(std::shared_ptr<const Export> served);
  void ContinueList();

  uint8_t* Append(size_t size);
  void AppendText(absl::string_view text);
  void ReplyHeader(OptionReply type, size_t length);
  void ReplyError(OptionReply type, absl::string_view text);
  void ReplyInfo(const Export& served, const InfoRequest& request);
  void ReplyBlockSizes(const Export& served);
  void ReplyInfoText(InfoType type, absl::string_view text);

  const ExportDirectory& directory_;
  const HandshakeOptions options_;
  Admit admit_;
  Authorize authorize_;  // May be null.

  Phase phase_ = Phase::kClientFlags;
  uint64_t missing_ = 0;        // Bytes until the phase's message is complete.
  std::vector<uint8_t> input_;  // Of the message so far; empty for ignored data.
  std::vector<uint8_t> output_;
  size_t sent_ = 0;  // Of output_.

  bool fixed_newstyle_ = false;  // The client speaks it.
  bool no_zeroes_ = false;
  bool shutting_down_ = false;
  bool encrypted_ = false;
  OptionHeader option_;     // The current one.
  bool too_big_ = false;    // Its data was, and is ignored.
  bool needs_tls_ = false;  // As "FORCEDTLS mode" wants it; its data is ignored.
  uint64_t option_count_ = 0;
  uint64_t ignored_bytes_ = 0;

  // NBD_OPT_LIST under way: where it goes on, by name, as exports come and go while a slow client reads.
  bool listing_ = false;
  bool list_started_ = false;
  std::string last_listed_;
  uint64_t listed_ = 0;       // By this list so far.
  uint64_t most_listed_ = 0;  // By one list.

  // What NBD_OPT_SET_META_CONTEXT chose, and for which export.
  std::vector<MetaContext> contexts_;
  std::string contexts_export_;

  // The last export whose block sizes the client asked for; none at first, which no name may be taken for.
  std::optional<std::string> block_sizes_told_of_;

  Negotiated negotiated_;
  absl::Status close_reason_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_HANDSHAKE_H_
