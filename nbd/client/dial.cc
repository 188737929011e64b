#include "nbd/client/dial.h"

#include <pwd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/monotonic_clock.h"
#include "nbd/client/client_handshake.h"
#include "nbd/client/connect_socket.h"
#include "nbd/client/run_within.h"
#include "nbd/tls/tls_transport.h"

namespace berth::nbd {
namespace {

using Credentials = std::shared_ptr<const TlsCredentials>;

constexpr size_t kReceiveSize = 4096;

// "the userinfo field SHOULD default to a local operating system credential" (uri.md).
std::string LocalUser() {
  passwd entry;
  passwd* found = nullptr;
  char buffer[4096];
  getpwuid_r(getuid(), &entry, buffer, sizeof(buffer), &found);
  return found == nullptr ? "" : found->pw_name;
}

absl::StatusOr<Credentials> LoadCredentials(const Uri& uri) {
  ClientTlsFiles files;
  files.certificates = uri.tls_certificates;
  files.psk = uri.tls_psk_file;
  if (!files.psk.empty()) files.psk_user = uri.tls_username.empty() ? LocalUser() : uri.tls_username;
  files.verify_server = uri.tls_verify_peer.value_or(true);
  files.anonymous = uri.tls_type == Uri::TlsType::kAnonymous;
  return TlsCredentials::ForClient(files);
}

// The way to one server, from the socket on.
class Dialing {
 public:
  Dialing(Reactor& reactor, BlockingPool& pool, const Uri& uri, const DialOptions& options)
      : reactor_(reactor), pool_(pool), uri_(uri), options_(options) {}
  Dialing(const Dialing&) = delete;

  // Connects and goes through `handshake` to its end.
  Task<absl::Status> Run(ClientHandshake& handshake) {
    absl::Status status = co_await FindCredentials();
    if (!status.ok()) co_return status;
    const absl::Duration connect_timeout = std::min(options_.connect_timeout, absl::Hours(24));
    absl::StatusOr<UniqueFd> socket = co_await ConnectSocket(reactor_, pool_, uri_, connect_timeout);
    if (!socket.ok()) co_return socket.status();
    plain_ = MakePlainTransport(reactor_, *std::move(socket));

    bool timed_out = false;
    const absl::Duration timeout = std::min(options_.handshake_timeout, absl::Hours(24));
    deadline_ = MonotonicNanoseconds() + absl::ToInt64Nanoseconds(timeout);
    const Reactor::Timer timer(reactor_, timeout, [this, &timed_out] {
      timed_out = true;
      transport().Shutdown();
    });
    status = co_await Negotiate(handshake);
    if (timed_out && !status.ok()) {
      status = absl::DeadlineExceededError(absl::StrCat("no answer within ", absl::FormatDuration(timeout),
                                                        "; awaited was ", handshake.awaited()));
    }
    if (!status.ok()) {
      co_return absl::Status(status.code(),
                             absl::StrCat("NBD server ", ServerName(uri_), ": ", status.message()));
    }
    co_return status;
  }

  std::unique_ptr<Transport> TakeTransport() {
    return tls_ != nullptr ? std::unique_ptr<Transport>(std::move(tls_))
                           : std::unique_ptr<Transport>(std::move(plain_));
  }

 private:
  Transport& transport() { return tls_ != nullptr ? static_cast<Transport&>(*tls_) : *plain_; }

  Task<absl::Status> FindCredentials() {
    if (!uri_.tls) co_return absl::OkStatus();
    credentials_ = options_.tls_credentials;
    if (credentials_ != nullptr) co_return absl::OkStatus();
    const auto load = [uri = uri_] { return LoadCredentials(uri); };
    std::optional<absl::StatusOr<Credentials>> loaded =
        co_await RunWithin(pool_, reactor_, options_.connect_timeout, load);
    if (!loaded.has_value()) co_return absl::DeadlineExceededError("reading the files for TLS took too long");
    if (!loaded->ok()) co_return loaded->status();
    credentials_ = **std::move(loaded);
    co_return absl::OkStatus();
  }

  Task<absl::Status> Negotiate(ClientHandshake& handshake) {
    uint8_t buffer[kReceiveSize];
    while (true) {
      const absl::Span<const uint8_t> output = handshake.output();
      if (!output.empty()) {
        const iovec vector = {const_cast<uint8_t*>(output.data()), output.size()};
        const int sent = co_await transport().Send({&vector, 1});
        if (sent < 0) co_return Broken(handshake, sent);
        handshake.Sent(static_cast<size_t>(sent));
      } else if (handshake.state() == ClientHandshake::State::kDone) {
        co_return handshake.status();
      } else if (handshake.state() == ClientHandshake::State::kTls) {
        absl::Status status = co_await StartTls();
        if (!status.ok()) co_return status;
        handshake.TlsStarted();
      } else {
        const iovec vector = {buffer, std::min(handshake.wanted(), sizeof(buffer))};
        const int received = co_await transport().Receive({&vector, 1});
        if (received <= 0) co_return Broken(handshake, received);
        handshake.Consume({buffer, static_cast<size_t>(received)});
      }
    }
  }

  Task<absl::Status> StartTls() {
    std::string name = uri_.tls_hostname;
    if (name.empty() && uri_.family == Uri::Family::kTcp) name = uri_.host;
    if (name.empty() && credentials_->verifies_peer()) {
      co_return absl::InvalidArgumentError(
          "the server's certificate cannot be checked, as the URI has no host; add tls-hostname=NAME, or "
          "tls-verify-peer=0");
    }
    tls_ = MakeTlsTransport(reactor_, plain_->TakeSocket(), credentials_, name);
    co_return co_await tls_->Handshake(absl::Nanoseconds(deadline_ - MonotonicNanoseconds()));
  }

  // `result` is a transport's.
  static absl::Status Broken(const ClientHandshake& handshake, int result) {
    return absl::UnavailableError(
        result == 0 ? absl::StrCat("it closed the connection in the place of ", handshake.awaited())
                    : absl::StrCat("the connection broke (", strerror(-result), "); awaited was ",
                                   handshake.awaited()));
  }

  Reactor& reactor_;
  BlockingPool& pool_;
  const Uri& uri_;
  const DialOptions& options_;
  Credentials credentials_;
  int64_t deadline_ = 0;  // Of the handshake.
  std::unique_ptr<PlainTransport> plain_;
  std::unique_ptr<TlsTransport> tls_;
};

ClientHandshakeOptions HandshakeOptionsOf(const Uri& uri, const DialOptions& options,
                                          ClientHandshakeOptions::Goal goal) {
  ClientHandshakeOptions handshake;
  handshake.goal = goal;
  handshake.export_name = uri.export_name;
  handshake.tls = uri.tls;
  handshake.extended_headers = options.extended_headers;
  handshake.structured_replies = options.structured_replies;
  handshake.contexts = options.contexts;
  return handshake;
}

}  // namespace

Task<absl::StatusOr<Connection>> Dial(Reactor& reactor, BlockingPool& pool, const Uri& uri,
                                      const DialOptions& options) {
  ClientHandshake handshake(HandshakeOptionsOf(uri, options, ClientHandshakeOptions::Goal::kTransmission));
  Dialing dialing(reactor, pool, uri, options);
  const absl::Status status = co_await dialing.Run(handshake);
  if (!status.ok()) co_return status;
  Connection connection;
  connection.transport = dialing.TakeTransport();
  connection.agreement = handshake.TakeAgreement();
  co_return connection;
}

Task<absl::StatusOr<std::vector<ListedExport>>> ListExports(Reactor& reactor, BlockingPool& pool,
                                                            const Uri& uri, const DialOptions& options) {
  ClientHandshake handshake(HandshakeOptionsOf(uri, options, ClientHandshakeOptions::Goal::kList));
  Dialing dialing(reactor, pool, uri, options);
  const absl::Status status = co_await dialing.Run(handshake);
  if (!status.ok()) co_return status;
  co_return handshake.TakeList();
}

}  // namespace berth::nbd
