#include "nbd/listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "image/io/task.h"

namespace berth::nbd {
namespace {

absl::Status TcpError(const Address& address, absl::string_view call) {
  const int error = errno;
  absl::string_view way_out = "";
  if (error == EADDRINUSE) way_out = "; another server has it, choose another port";
  if (error == EACCES) way_out = "; ports below 1024 need CAP_NET_BIND_SERVICE";
  if (error == EADDRNOTAVAIL) way_out = "; this machine has no such address";
  return absl::ErrnoToStatus(error, absl::StrCat("address '", address.ToString(), "': ", call, way_out));
}

void Set(int socket, int level, int option) {
  const int on = 1;
  setsockopt(socket, level, option, &on, sizeof(on));
}

// `not_here` tells whether it failed because this machine has no such address.
absl::StatusOr<UniqueFd> ListenTcp(const Address& address, const addrinfo& info, int backlog,
                                   bool* not_here) {
  UniqueFd made(socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  *not_here = !made && errno == EAFNOSUPPORT;
  if (!made) return TcpError(address, "socket");
  Set(made.get(), SOL_SOCKET, SO_REUSEADDR);
  // 0.0.0.0 and [::] are separate sockets, so that each may fail for itself.
  if (info.ai_family == AF_INET6) Set(made.get(), IPPROTO_IPV6, IPV6_V6ONLY);
  if (bind(made.get(), info.ai_addr, info.ai_addrlen) != 0) {
    *not_here = errno == EADDRNOTAVAIL;
    return TcpError(address, "bind");
  }
  if (listen(made.get(), backlog) != 0) return TcpError(address, "listen");
  return made;
}

}  // namespace

// What the accept loops share, on the reactor's thread. They hold it, so that it lives until the last of them
// has ended.
struct Listener::Acceptor {
  Acceptor(Reactor* on, absl::Duration pause, std::vector<UniqueFd> listening,
           absl::AnyInvocable<void(UniqueFd)> connected, absl::AnyInvocable<void()> ended)
      : reactor(*on),
        shortage_pause(pause),
        sockets(std::move(listening)),
        on_connection(std::move(connected)),
        on_end(std::move(ended)) {}

  static Task<void> Accept(std::shared_ptr<Acceptor> self, int socket);

  Reactor& reactor;
  const absl::Duration shortage_pause;
  std::atomic<uint64_t> shortages = 0;  // Read by any thread.
  std::vector<UniqueFd> sockets;
  absl::AnyInvocable<void(UniqueFd)> on_connection;
  absl::AnyInvocable<void()> on_end;
  bool stopping = false;
  size_t running = 0;
};

Task<void> Listener::Acceptor::Accept(std::shared_ptr<Acceptor> self, int socket) {
  while (!self->stopping) {
    const int accepted = co_await self->reactor.Accept(socket);
    if (accepted >= 0) {
      UniqueFd connection(accepted);
      if (self->stopping) break;
      // proto.md, "Protocol phases". Fails on a Unix socket, where it means nothing.
      Set(accepted, IPPROTO_TCP, TCP_NODELAY);
      Set(accepted, SOL_SOCKET, SO_KEEPALIVE);
      self->on_connection(std::move(connection));
      continue;
    }
    // The client was gone before it was accepted. Everything else may last, above all EMFILE and ENFILE.
    if (self->stopping || accepted == -ECONNABORTED || accepted == -EINTR) continue;
    self->shortages.fetch_add(1, std::memory_order_relaxed);
    co_await self->reactor.Sleep(self->shortage_pause);
  }
  if (--self->running > 0) co_return;
  self->sockets.clear();  // Whoever hears of the end may take the address at once.
  self->on_end();
}

absl::StatusOr<std::unique_ptr<Listener>> Listener::Open(const Address& address,
                                                         const ListenOptions& options) {
  std::unique_ptr<Listener> listener(new Listener(address, options.shortage_pause));
  absl::Status status =
      address.kind == Address::Kind::kUnix ? listener->OpenUnix(options) : listener->OpenTcp(options);
  if (!status.ok()) return status;
  return listener;
}

absl::Status Listener::OpenUnix(const ListenOptions& options) {
  absl::StatusOr<UnixSocketFile> file =
      UnixSocketFile::Listen(address_.path, options.socket_mode, options.backlog);
  if (!file.ok()) return file.status();
  file_.emplace(*std::move(file));
  sockets_.push_back(file_->TakeSocket());
  return absl::OkStatus();
}

absl::Status Listener::OpenTcp(const ListenOptions& options) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const std::string service = "0";
  const int result =
      getaddrinfo(address_.host.empty() ? nullptr : address_.host.c_str(), service.c_str(), &hints, &found);
  if (result != 0) {
    return absl::NotFoundError(absl::StrCat("address '", address_.ToString(), "': host '", address_.host,
                                            "': ", gai_strerror(result)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, &freeaddrinfo);

  absl::Status missing;
  for (addrinfo* info = addresses.get(); info != nullptr; info = info->ai_next) {
    // The port of the first socket is the port of all, where the system chose it.
    if (info->ai_family == AF_INET) {
      reinterpret_cast<sockaddr_in*>(info->ai_addr)->sin_port = htons(address_.port);
    } else if (info->ai_family == AF_INET6) {
      reinterpret_cast<sockaddr_in6*>(info->ai_addr)->sin6_port = htons(address_.port);
    } else {
      continue;
    }
    bool not_here = false;
    absl::StatusOr<UniqueFd> socket = ListenTcp(address_, *info, options.backlog, &not_here);
    if (!socket.ok()) {
      // A name may have addresses that this machine has not: ::1 for localhost, where IPv6 is off.
      if (!not_here) return socket.status();
      missing = socket.status();
      continue;
    }
    if (address_.port == 0) {
      absl::StatusOr<Address> local = LocalAddress(socket->get());
      if (!local.ok()) return local.status();
      address_.port = local->port;
    }
    sockets_.push_back(*std::move(socket));
  }
  return sockets_.empty() ? missing : absl::OkStatus();
}

void Listener::Start(Reactor& reactor, absl::AnyInvocable<void(UniqueFd)> on_connection,
                     absl::AnyInvocable<void()> on_end) {
  acceptor_ = std::make_shared<Acceptor>(&reactor, shortage_pause_, std::move(sockets_),
                                         std::move(on_connection), std::move(on_end));
  reactor.Post([acceptor = acceptor_] {
    acceptor->running = acceptor->sockets.size();
    for (const UniqueFd& socket : acceptor->sockets) Spawn(Acceptor::Accept(acceptor, socket.get()));
  });
}

uint64_t Listener::shortages() const {
  return acceptor_ == nullptr ? 0 : acceptor_->shortages.load(std::memory_order_relaxed);
}

void Listener::Stop() {
  sockets_.clear();
  if (file_) file_->Remove();
  if (acceptor_ == nullptr) return;
  Reactor& reactor = acceptor_->reactor;
  reactor.Post([acceptor = std::move(acceptor_)] {
    acceptor->stopping = true;
    // Ends the pending accept.
    for (const UniqueFd& socket : acceptor->sockets) shutdown(socket.get(), SHUT_RDWR);
  });
  acceptor_.reset();
}

}  // namespace berth::nbd
