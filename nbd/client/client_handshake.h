// ClientHandshake: the client's side of the fixed newstyle negotiation (proto.md, "Handshake"), as a state
// machine.
//
// It does no I/O: its owner sends what output() holds, receives at most wanted() bytes, and hands them to
// Consume(). Reading no more than wanted() keeps what follows in the socket: the transmission phase finds its
// first byte there, and not one byte that came in the clear can be taken for one that came under TLS.
//
// The dialogue stands in client_handshake.cc as it is spoken, as a coroutine: the states of the machine are
// the places where it waits for bytes.
//
// Every byte of the server is taken for hostile: what it may send, and what is kept of it, is bounded by the
// options, the sizes of messages by the specification. How long it may take is the owner's matter.
//
// Thread: confined to one.
#ifndef BERTH_NBD_CLIENT_CLIENT_HANDSHAKE_H_
#define BERTH_NBD_CLIENT_CLIENT_HANDSHAKE_H_

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "image/io/task.h"
#include "nbd/client/export_info.h"
#include "nbd/wire.h"

namespace berth::nbd {

struct ClientHandshakeOptions {
  enum class Goal : uint8_t {
    kTransmission,  // To have `export_name`, by NBD_OPT_GO, or NBD_OPT_EXPORT_NAME where the server is old.
    kList,          // To know the server's exports, and what it tells of each; then to leave.
  };
  Goal goal = Goal::kTransmission;
  std::string export_name = "";  // At most 4,096 bytes.
  bool tls = false;              // NBD_OPT_STARTTLS; refused, it is the end.
  // Extended headers are asked for first, structured replies where they are refused.
  bool extended_headers = true;
  bool structured_replies = true;
  // NBD_OPT_SET_META_CONTEXT's queries; a server that has none of them is no error.
  std::vector<std::string> contexts = {kBaseAllocation};
  // Of a list. A server that has more is an error.
  size_t max_exports = 65536;
  // That the server may send in all.
  uint64_t max_bytes = uint64_t{64} << 20;
};

class ClientHandshake {
 public:
  explicit ClientHandshake(ClientHandshakeOptions options);
  ClientHandshake(const ClientHandshake&) = delete;
  ClientHandshake& operator=(const ClientHandshake&) = delete;

  enum class State : uint8_t {
    kTalking,  // Send output(), then receive wanted() bytes.
    kTls,      // Nothing to send or receive: do TLS's handshake on the connection, then call TlsStarted().
    kDone,     // Send what is left of output(); then see status().
  };
  State state() const { return state_; }

  // Bytes to send; they stay until Sent(). The first `count` were sent.
  absl::Span<const uint8_t> output() const { return absl::MakeConstSpan(output_).subspan(sent_); }
  void Sent(size_t count);

  // The most bytes to receive now: 0 while there is output, and where nothing is awaited.
  size_t wanted() const;
  // Takes bytes, at most wanted().
  void Consume(absl::Span<const uint8_t> bytes);

  void TlsStarted();

  // Once done. INTERNAL where the server broke the protocol, or speaks one too old; RESOURCE_EXHAUSTED where
  // it went past a bound; NOT_FOUND, PERMISSION_DENIED, UNAUTHENTICATED (it wants TLS), UNAVAILABLE (it
  // stops), UNIMPLEMENTED where it refused, with its own words.
  const absl::Status& status() const { return status_; }
  // Where the server closes the connection, or is silent for too long: what was awaited from it, as in "the
  // answer to NBD_OPT_GO".
  const std::string& awaited() const { return awaited_; }

  // Results, once done and the status is OK. Once.
  Agreement TakeAgreement() { return std::move(agreement_); }
  std::vector<ListedExport> TakeList() { return std::move(list_); }

 private:
  struct Reply {
    OptionReply type = OptionReply::kAck;
    std::vector<uint8_t> data;

    bool is_error() const { return (static_cast<uint32_t>(type) & kOptionErrorBit) != 0; }
  };

  Task<void> Run();
  Task<absl::Status> Converse();
  Task<absl::Status> Greet();
  Task<absl::Status> StartTls();
  Task<absl::Status> ChooseStyle();
  // An option without data that is either accepted or refused.
  Task<absl::StatusOr<bool>> Accepts(Option option);
  Task<absl::Status> SelectContexts();
  Task<absl::Status> Go();
  Task<absl::Status> GoByExportName();
  Task<absl::Status> List();
  Task<absl::Status> Describe(ListedExport& listed);
  // NBD_OPT_INFO or NBD_OPT_GO. A refusal is the status.
  Task<absl::Status> AskInfo(Option option, ExportInfo& info);
  // NBD_OPT_SET_META_CONTEXT or NBD_OPT_LIST_META_CONTEXT. Refused, there are none.
  Task<absl::Status> AskContexts(Option option, const std::vector<std::string>& queries, ExportInfo& info);
  Task<absl::StatusOr<Reply>> ReceiveReply(Option option);

  void SendOption(Option option, absl::Span<const uint8_t> data = {});

  // Awaited: `count` bytes are in input_.
  auto Bytes(size_t count) {
    struct Awaiter {
      ClientHandshake* handshake;
      bool await_ready() const noexcept { return handshake->missing_ == 0; }
      void await_suspend(std::coroutine_handle<> waiter) const { handshake->waiter_ = waiter; }
      void await_resume() const noexcept {}
    };
    input_.clear();
    missing_ = count;
    received_ += count;
    return Awaiter{this};
  }

  const ClientHandshakeOptions options_;
  State state_ = State::kTalking;
  std::vector<uint8_t> input_;
  size_t missing_ = 0;
  uint64_t received_ = 0;
  std::vector<uint8_t> output_;
  size_t sent_ = 0;  // Of output_.
  bool no_zeroes_ = false;
  std::string awaited_;

  Agreement agreement_;
  std::vector<ListedExport> list_;
  absl::Status status_;

  std::coroutine_handle<> waiter_;
  Task<void> run_;  // The last: it refers to everything above.
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_CLIENT_HANDSHAKE_H_
