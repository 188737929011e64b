#include "nbd/server.h"

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "image/io/mutex.h"
#include "image/io/task.h"
#include "nbd/client_identity.h"
#include "nbd/protocol_string.h"
#include "nbd/tls/tls_transport.h"
#include "nbd/transport.h"

namespace berth::nbd {
namespace {

// What a client in the handshake gets for asking once more, and hearing that the server is stopping.
constexpr absl::Duration kShutdownGrace = absl::Milliseconds(100);

// What cutting connections off may take beyond the deadline.
constexpr absl::Duration kAbortTimeout = absl::Seconds(5);

// A deadline that the standard library's clocks can hold.
absl::Time Bounded(absl::Time deadline) { return std::min(deadline, absl::Now() + absl::Hours(24)); }

}  // namespace

// What the server and its connections share. Thread-safe. Connections hold it, so that it outlives them.
class Server::Core : public std::enable_shared_from_this<Core> {
 public:
  Core(ReactorPool& pool, std::shared_ptr<const ExportDirectory> directory, const ServerOptions& options,
       std::shared_ptr<ClientObserver> observer)
      : options_(options), directory_(std::move(directory)), observer_(std::move(observer)), pool_(pool) {}

  absl::StatusOr<Address> Listen(const Address& address, const ListenOptions& options);
  absl::Status Stop(absl::Time deadline);
  absl::Status DisconnectExport(absl::string_view name, absl::Time deadline);
  absl::StatusOr<size_t> CountClients(absl::string_view name, absl::Time deadline) const;
  ServerStatistics statistics() const;

  const ServerOptions& options() const { return options_; }
  bool stopping() const {
    MutexLock lock(&mutex_);
    return stopping_;
  }
  const ExportDirectory& directory() const { return *directory_; }

  void Accepted(UniqueFd socket);

  // Of a connection, on its reactor.
  absl::Status Admit(Connection* connection, const Client& client);
  void Ended(Connection* connection, const std::string& peer, const absl::Status& reason);

 private:
  // Those that have the export `name`, or all of them where there is no name.
  using Selection = std::optional<absl::string_view>;

  // The reason where the connection is one too many.
  absl::Status CheckLimits(const std::string& site) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ListenerEnded();
  void Forget(Connection* connection) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<std::shared_ptr<Connection>> Select(Selection name) const;
  absl::Status WaitForReactors(absl::Time deadline) const;
  bool WaitUntilGone(Selection name, absl::Time deadline);
  absl::Status End(Selection name, absl::Time deadline);

  const ServerOptions options_;
  const std::shared_ptr<const ExportDirectory> directory_;
  const std::shared_ptr<ClientObserver> observer_;
  ReactorPool& pool_;

  mutable Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::unique_ptr<Listener>> listeners_ ABSL_GUARDED_BY(mutex_);
  size_t running_listeners_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<Connection*, std::shared_ptr<Connection>> connections_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, size_t> sites_ ABSL_GUARDED_BY(mutex_);  // How many connections each has.
  // By export, those admitted.
  std::map<std::string, std::set<Connection*>, std::less<>> clients_ ABSL_GUARDED_BY(mutex_);
  ServerStatistics statistics_ ABSL_GUARDED_BY(mutex_);
};

// One connection, from accept to close. Thread: its reactor's, but for Stop() and Abort(). Held by the
// core until it has ended.
class Server::Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<Core> core, Reactor& reactor, UniqueFd socket)
      : core_(std::move(core)),
        reactor_(reactor),
        peer_(PeerName(socket.get())),
        site_(PeerSite(socket.get())),
        socket_(std::move(socket)) {}

  static void Start(std::shared_ptr<Connection> self) {
    Reactor& reactor = self->reactor_;
    reactor.Post([self = std::move(self)] { Spawn(Run(self)); });
  }

  // Any thread.
  void Stop() {
    reactor_.Post([self = shared_from_this()] { self->StopHere(); });
  }
  void Abort() {
    reactor_.Post([self = shared_from_this()] { self->AbortHere(); });
  }

  // As PeerSite() says it.
  const std::string& site() const { return site_; }
  const std::string& peer() const { return peer_; }

  // The export that it was admitted to. Under the core's mutex, or on its reactor.
  std::optional<std::string> export_name;

 private:
  static Task<void> Run(std::shared_ptr<Connection> self);
  Task<absl::Status> Negotiate();
  Task<absl::Status> StartTls();
  absl::Status Authorize(const Export& served) const;
  absl::Status Admit(const Export& served);
  void StartTransmission(Negotiated negotiated);
  void StopHere();
  void AbortHere();
  void End(const absl::Status& reason);

  const std::shared_ptr<Core> core_;
  Reactor& reactor_;
  std::string peer_;
  const std::string site_;
  ClientIdentity identity_;

  UniqueFd socket_;                       // Until Run().
  std::unique_ptr<Transport> transport_;  // During the handshake.
  PlainTransport* plain_ = nullptr;       // The same, until it is under TLS.
  std::unique_ptr<Handshake> handshake_;  // During the handshake.
  Reactor::Timer deadline_;               // Of the handshake.
  absl::Status cut_off_;                  // Why the deadline, or a stop, ended the handshake.
  std::shared_ptr<Session> session_;      // From then on.
  bool stopping_ = false;
  bool aborting_ = false;
};

Task<void> Server::Connection::Run(std::shared_ptr<Connection> self) {
  Connection& here = *self;
  auto plain = MakePlainTransport(here.reactor_, std::move(here.socket_));
  here.plain_ = plain.get();
  here.transport_ = std::move(plain);
  const absl::Duration timeout = here.core_->options().handshake_timeout;
  here.deadline_ = Reactor::Timer(here.reactor_, timeout, [&here, timeout] {
    here.cut_off_ = absl::DeadlineExceededError(
        absl::StrCat("the handshake was not over after ", absl::FormatDuration(timeout)));
    here.transport_->Shutdown();
  });
  here.handshake_ = std::make_unique<Handshake>(
      here.core_->directory(), here.core_->options().handshake,
      [&here](const Export& served) { return here.Admit(served); },
      [&here](const Export& served) { return here.Authorize(served); });
  if (here.stopping_) here.StopHere();
  if (here.aborting_) here.AbortHere();
  const absl::Status status = co_await here.Negotiate();
  here.deadline_.Cancel();
  if (status.ok()) {
    Negotiated negotiated = here.handshake_->TakeNegotiated();
    here.handshake_.reset();
    here.StartTransmission(std::move(negotiated));
  } else {
    // Whatever was negotiated goes before the end is told.
    here.handshake_.reset();
    here.transport_.reset();
    here.End(here.cut_off_.ok() ? status : here.cut_off_);
  }
}

Task<absl::Status> Server::Connection::Negotiate() {
  // Options are short, and nobody waits for a long one to arrive quickly.
  std::array<uint8_t, 1024> buffer;
  while (true) {
    while (!handshake_->output().empty()) {
      const absl::Span<const uint8_t> output = handshake_->output();
      const iovec bytes = {const_cast<uint8_t*>(output.data()), output.size()};
      const int sent = co_await transport_->Send(absl::MakeConstSpan(&bytes, 1));
      if (sent < 0) co_return absl::UnavailableError(absl::StrCat("send: ", strerror(-sent)));
      handshake_->Sent(static_cast<size_t>(sent));
      // A client that reads a long list as fast as it can does not keep the others of this reactor waiting.
      co_await reactor_.Yield();
    }
    if (handshake_->negotiated()) co_return absl::OkStatus();
    if (handshake_->finished()) co_return handshake_->close_reason();
    if (handshake_->wants_tls()) {
      if (absl::Status status = co_await StartTls(); !status.ok()) co_return status;
      handshake_->TlsStarted();
      continue;
    }
    const iovec bytes = {buffer.data(), std::min(buffer.size(), handshake_->wanted())};
    const int received = co_await transport_->Receive(absl::MakeConstSpan(&bytes, 1));
    if (received == 0) co_return absl::UnavailableError("the client closed the connection");
    if (received < 0) co_return absl::UnavailableError(absl::StrCat("receive: ", strerror(-received)));
    handshake_->Consume(absl::MakeConstSpan(buffer.data(), static_cast<size_t>(received)));
    co_await reactor_.Yield();
  }
}

// The deadline of the handshake as a whole holds for this part of it too.
Task<absl::Status> Server::Connection::StartTls() {
  auto under_tls = MakeTlsTransport(reactor_, plain_->TakeSocket(), core_->options().tls_credentials());
  TlsTransport& transport = *under_tls;
  plain_ = nullptr;
  transport_ = std::move(under_tls);
  absl::Status status = co_await transport.Handshake(core_->options().handshake_timeout);
  if (!status.ok()) co_return status;
  identity_ = {.distinguished_name = transport.peer().distinguished_name,
               .psk_user = transport.peer().psk_user};
  // For people and logs, whatever an authority signed.
  if (!identity_.distinguished_name.empty()) {
    absl::StrAppend(&peer_, " ", Quoted(identity_.distinguished_name));
  }
  if (!identity_.psk_user.empty()) absl::StrAppend(&peer_, " psk:", Quoted(identity_.psk_user));
  co_return status;
}

absl::Status Server::Connection::Authorize(const Export& served) const {
  const ServerOptions& options = core_->options();
  if (options.allowed_clients.Allows(identity_) && served.allowed_clients.Allows(identity_) &&
      (options.authorize == nullptr || options.authorize(identity_))) {
    return absl::OkStatus();
  }
  std::string who = "a client without a certificate or a pre-shared key";
  if (!identity_.distinguished_name.empty()) who = Quoted(identity_.distinguished_name);
  if (!identity_.psk_user.empty()) who = absl::StrCat("the user ", Quoted(identity_.psk_user));
  return absl::PermissionDeniedError(
      absl::StrCat("export ", Quoted(served.name), " is not for ", who, "; its rules say who may use it"));
}

absl::Status Server::Connection::Admit(const Export& served) {
  return core_->Admit(this, {.export_name = served.name, .peer = peer_});
}

void Server::Connection::StartTransmission(Negotiated negotiated) {
  auto on_end = [self = shared_from_this()] { self->End(self->session_->end_reason()); };
  session_ = StartSession(reactor_, std::move(transport_), std::move(negotiated), core_->options().session,
                          std::move(on_end));
  if (stopping_) session_->Stop();
  if (aborting_) session_->Abort();
}

void Server::Connection::StopHere() {
  stopping_ = true;
  if (session_ != nullptr) session_->Stop();
  if (handshake_ == nullptr) return;
  handshake_->BeginShutdown();
  deadline_ = Reactor::Timer(reactor_, kShutdownGrace, [this] {
    cut_off_ = absl::UnavailableError("the server is stopping");
    transport_->Shutdown();
  });
}

void Server::Connection::AbortHere() {
  aborting_ = true;
  if (session_ != nullptr) session_->Abort();
  if (handshake_ != nullptr) transport_->Shutdown();
}

void Server::Connection::End(const absl::Status& reason) {
  session_.reset();
  core_->Ended(this, peer_, reason);
}

absl::StatusOr<Address> Server::Core::Listen(const Address& address, const ListenOptions& options) {
  absl::StatusOr<std::unique_ptr<Listener>> listener = Listener::Open(address, options);
  if (!listener.ok()) return listener.status();
  const Address bound = (*listener)->address();
  MutexLock lock(&mutex_);
  if (stopping_) {
    return absl::FailedPreconditionError(
        absl::StrCat("address '", address.ToString(), "': the server has been stopped"));
  }
  (*listener)->Start(
      pool_.Next(), [core = shared_from_this()](UniqueFd socket) { core->Accepted(std::move(socket)); },
      [core = shared_from_this()] { core->ListenerEnded(); });
  ++running_listeners_;
  listeners_.push_back(*std::move(listener));
  return bound;
}

void Server::Core::Accepted(UniqueFd socket) {
  auto connection = std::make_shared<Connection>(shared_from_this(), pool_.Next(), std::move(socket));
  absl::Status refused;
  {
    MutexLock lock(&mutex_);
    ++statistics_.accepted;
    if (stopping_) return;
    refused = CheckLimits(connection->site());
    if (refused.ok()) {
      connections_.emplace(connection.get(), connection);
      if (!connection->site().empty()) ++sites_[connection->site()];
    } else {
      ++statistics_.over_limit;
    }
  }
  if (refused.ok()) return Connection::Start(std::move(connection));
  if (observer_ != nullptr) observer_->Rejected(connection->peer(), refused);
}

absl::Status Server::Core::CheckLimits(const std::string& site) {
  if (connections_.size() >= options_.max_connections) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there are ", connections_.size(), " connections, which is as many as there may be"));
  }
  const auto found = sites_.find(site);
  if (found == sites_.end() || found->second < options_.max_connections_per_address) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(site, " has ", found->second, " connections, which is as many as one address may have"));
}

void Server::Core::ListenerEnded() {
  MutexLock lock(&mutex_);
  --running_listeners_;
  changed_.SignalAll();
}

absl::Status Server::Core::Admit(Connection* connection, const Client& client) {
  {
    MutexLock lock(&mutex_);
    if (stopping_) return absl::UnavailableError("the server is stopping");
    std::set<Connection*>& clients = clients_[client.export_name];
    if (clients.size() >= options_.max_connections_per_export) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the export has ", clients.size(), " clients, which is as many as it may have"));
    }
    clients.insert(connection);
    connection->export_name = client.export_name;
  }
  if (observer_ == nullptr) return absl::OkStatus();
  absl::Status status = observer_->Connecting(client);
  if (status.ok()) return status;
  MutexLock lock(&mutex_);
  Forget(connection);
  changed_.SignalAll();
  return status;
}

void Server::Core::Ended(Connection* connection, const std::string& peer, const absl::Status& reason) {
  // First the observer, so that whoever waits for the end finds that it has been told.
  if (observer_ != nullptr) {
    if (connection->export_name.has_value()) {
      observer_->Disconnected({.export_name = *connection->export_name, .peer = peer}, reason);
    } else {
      observer_->Rejected(peer, reason);
    }
  }
  MutexLock lock(&mutex_);
  if (!connection->export_name.has_value()) ++statistics_.not_admitted;
  Forget(connection);
  if (auto site = sites_.find(connection->site()); site != sites_.end() && --site->second == 0)
    sites_.erase(site);
  connections_.erase(connection);
  changed_.SignalAll();
}

void Server::Core::Forget(Connection* connection) {
  if (!connection->export_name.has_value()) return;
  auto found = clients_.find(*connection->export_name);
  found->second.erase(connection);
  if (found->second.empty()) clients_.erase(found);
  connection->export_name.reset();
}

absl::Status Server::Core::Stop(absl::Time deadline) {
  std::vector<std::unique_ptr<Listener>> listeners;
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    listeners.swap(listeners_);
  }
  for (const std::unique_ptr<Listener>& listener : listeners) listener->Stop();
  return End(std::nullopt, deadline);
}

absl::Status Server::Core::DisconnectExport(absl::string_view name, absl::Time deadline) {
  if (absl::Status status = WaitForReactors(deadline); !status.ok()) return status;
  return End(name, deadline);
}

absl::StatusOr<size_t> Server::Core::CountClients(absl::string_view name, absl::Time deadline) const {
  if (absl::Status status = WaitForReactors(deadline); !status.ok()) return status;
  MutexLock lock(&mutex_);
  auto found = clients_.find(name);
  return found == clients_.end() ? 0 : found->second.size();
}

ServerStatistics Server::Core::statistics() const {
  MutexLock lock(&mutex_);
  ServerStatistics now = statistics_;
  now.connections = connections_.size();
  return now;
}

std::vector<std::shared_ptr<Server::Connection>> Server::Core::Select(Selection name) const {
  MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<Connection>> selected;
  for (const auto& [connection, owned] : connections_) {
    if (!name.has_value() || connection->export_name == *name) selected.push_back(owned);
  }
  return selected;
}

// A handshake looks an export up and is admitted to it in one turn of its reactor. Once every reactor has
// finished the turn that it is in, nobody can be between the two.
absl::Status Server::Core::WaitForReactors(absl::Time deadline) const {
  struct Barrier {
    Mutex mutex;
    CondVar changed;
    size_t missing ABSL_GUARDED_BY(mutex) = 0;
  };
  auto barrier = std::make_shared<Barrier>();
  MutexLock lock(&barrier->mutex);
  barrier->missing = pool_.size();
  for (size_t i = 0; i < pool_.size(); ++i) {
    pool_.at(i).Post([barrier] {
      MutexLock arrived(&barrier->mutex);
      --barrier->missing;
      barrier->changed.SignalAll();
    });
  }
  while (barrier->missing > 0) {
    if (!barrier->changed.WaitUntil(&barrier->mutex, deadline) && barrier->missing > 0) {
      return absl::DeadlineExceededError(
          absl::StrCat(barrier->missing, " of ", pool_.size(), " reactors did not answer in time"));
    }
  }
  return absl::OkStatus();
}

bool Server::Core::WaitUntilGone(Selection name, absl::Time deadline) {
  MutexLock lock(&mutex_);
  while (true) {
    const bool gone = name.has_value() ? clients_.find(*name) == clients_.end()
                                       : connections_.empty() && running_listeners_ == 0;
    if (gone) return true;
    if (absl::Now() >= deadline) return false;
    changed_.WaitUntil(&mutex_, deadline);
  }
}

absl::Status Server::Core::End(Selection name, absl::Time deadline) {
  for (const std::shared_ptr<Connection>& connection : Select(name)) connection->Stop();
  if (WaitUntilGone(name, deadline)) return absl::OkStatus();
  for (const std::shared_ptr<Connection>& connection : Select(name)) connection->Abort();
  if (WaitUntilGone(name, absl::Now() + kAbortTimeout)) return absl::OkStatus();
  const std::vector<std::shared_ptr<Connection>> left = Select(name);
  std::string text = absl::StrCat(left.size(), " connections did not end in time");
  if (name.has_value()) absl::StrAppend(&text, " on export ", Quoted(*name));
  return absl::DeadlineExceededError(
      absl::StrCat(text, ": their requests are stuck in the device; look at the disk below it"));
}

Server::Server(ReactorPool& pool, std::shared_ptr<const ExportDirectory> directory,
               const ServerOptions& options, std::shared_ptr<ClientObserver> observer)
    : core_(std::make_shared<Core>(pool, std::move(directory), options, std::move(observer))) {}

Server::~Server() {
  // What is left has a reason that Stop() told, or would have told.
  if (core_->stopping()) return;
  Stop(absl::Now() + core_->options().stop_timeout).IgnoreError();
}

absl::StatusOr<Address> Server::Listen(const Address& address, const ListenOptions& options) {
  return core_->Listen(address, options);
}

void Server::Serve(UniqueFd connection) { core_->Accepted(std::move(connection)); }

absl::Status Server::Stop(absl::Time deadline) { return core_->Stop(Bounded(deadline)); }

absl::Status Server::DisconnectExport(absl::string_view name, absl::Time deadline) {
  return core_->DisconnectExport(name, Bounded(deadline));
}

absl::StatusOr<size_t> Server::CountClients(absl::string_view name, absl::Time deadline) const {
  return core_->CountClients(name, Bounded(deadline));
}

ServerStatistics Server::statistics() const { return core_->statistics(); }

}  // namespace berth::nbd
