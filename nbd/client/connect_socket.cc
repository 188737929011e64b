#include "nbd/client/connect_socket.h"

#include <linux/vm_sockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "image/io/monotonic_clock.h"
#include "nbd/client/run_within.h"
#include "nbd/protocol_string.h"

namespace berth::nbd {
namespace {

// What a socket of the machine's own takes without being read: with less, large requests are slow.
constexpr int kUnixBuffer = 4 << 20;

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t length = 0;
};

struct Addresses {
  int error = 0;  // getaddrinfo(3)'s.
  std::vector<SocketAddress> found;
};

Addresses Resolve(const std::string& host, uint16_t port, int flags) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  Addresses addresses;
  addresses.error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (addresses.error != 0) return addresses;
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(list, &freeaddrinfo);
  for (const addrinfo* info = list; info != nullptr; info = info->ai_next) {
    SocketAddress address;
    memcpy(&address.storage, info->ai_addr, info->ai_addrlen);
    address.length = info->ai_addrlen;
    addresses.found.push_back(address);
  }
  return addresses;
}

SocketAddress UnixAddress(const std::string& path) {
  SocketAddress address;
  auto& unix_address = reinterpret_cast<sockaddr_un&>(address.storage);
  unix_address.sun_family = AF_UNIX;
  memcpy(unix_address.sun_path, path.data(), path.size());
  // An abstract name ends with its last byte, a path with a NUL.
  const size_t nul = path[0] == '\0' ? 0 : 1;
  address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + nul);
  return address;
}

SocketAddress VsockAddress(uint32_t cid, uint32_t port) {
  SocketAddress address;
  auto& vsock = reinterpret_cast<sockaddr_vm&>(address.storage);
  vsock.svm_family = AF_VSOCK;
  vsock.svm_cid = cid;
  vsock.svm_port = port;
  address.length = sizeof(vsock);
  return address;
}

absl::Status ConnectError(const Uri& uri, int error) {
  std::string text = absl::StrCat("cannot connect to ", ServerName(uri));
  if (error == ETIMEDOUT) {
    return absl::DeadlineExceededError(absl::StrCat(text, ": no answer in time"));
  }
  if (uri.family == Uri::Family::kVsock && (error == EAFNOSUPPORT || error == ENODEV)) {
    return absl::NotFoundError(absl::StrCat(text,
                                            ": this kernel has no vsock; inside a virtual machine load ",
                                            "vmw_vsock_virtio_transport, on its host vhost_vsock"));
  }
  if (error == ECONNREFUSED || error == ENOENT) {
    absl::StrAppend(&text, ": ", strerror(error), "; is the server running?");
    return error == ENOENT ? absl::NotFoundError(text) : absl::UnavailableError(text);
  }
  return absl::ErrnoToStatus(error, text);
}

// The socket, or -errno in `*error`.
Task<UniqueFd> ConnectTo(Reactor& reactor, const SocketAddress& address, absl::Duration timeout, int* error) {
  UniqueFd socket(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) {
    *error = errno;
    co_return UniqueFd();
  }
  if (address.storage.ss_family == AF_UNIX) {
    for (const int option : {SO_SNDBUF, SO_RCVBUF}) {
      setsockopt(socket.get(), SOL_SOCKET, option, &kUnixBuffer, sizeof(kUnixBuffer));
    }
  } else if (address.storage.ss_family != AF_VSOCK) {
    const int on = 1;  // "Protocol phases"
    setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  Reactor::Operation operation =
      reactor.Connect(socket.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.length);
  bool timed_out = false;
  const Reactor::Timer timer(reactor, timeout, [&reactor, &operation, &timed_out] {
    timed_out = true;
    reactor.Cancel(operation);
  });
  *error = -co_await operation;
  if (*error != 0 && timed_out) *error = ETIMEDOUT;  // Whatever it was told as.
  if (*error != 0) socket.Reset();
  co_return socket;
}

Task<absl::StatusOr<Addresses>> Find(Reactor& reactor, BlockingPool& pool, const Uri& uri,
                                     absl::Duration timeout) {
  Addresses addresses;
  if (uri.family == Uri::Family::kUnix) {
    addresses.found.push_back(UnixAddress(uri.socket));
    co_return addresses;
  }
  if (uri.family == Uri::Family::kVsock) {
    addresses.found.push_back(VsockAddress(uri.cid, uri.port));
    co_return addresses;
  }
  const auto port = static_cast<uint16_t>(uri.port);
  addresses = Resolve(uri.host, port, AI_NUMERICHOST);
  if (addresses.error == 0) co_return addresses;
  const auto look_up = [host = uri.host, port] { return Resolve(host, port, 0); };
  std::optional<Addresses> found = co_await RunWithin(pool, reactor, timeout, look_up);
  if (!found.has_value()) {
    co_return absl::DeadlineExceededError(
        absl::StrCat("host ", Quoted(uri.host), ": its address was not found in time"));
  }
  if (found->error != 0) {
    co_return absl::NotFoundError(absl::StrCat("host ", Quoted(uri.host), ": ", gai_strerror(found->error)));
  }
  co_return *std::move(found);
}

}  // namespace

std::string ServerName(const Uri& uri) {
  switch (uri.family) {
    case Uri::Family::kUnix:
      if (uri.socket[0] == '\0') return absl::StrCat("abstract Unix socket ", Quoted(uri.socket.substr(1)));
      return absl::StrCat("Unix socket ", Quoted(uri.socket));
    case Uri::Family::kVsock:
      return absl::StrCat("vsock ", uri.cid, ":", uri.port);
    case Uri::Family::kTcp:
      break;
  }
  const bool ipv6 = uri.host.find(':') != std::string::npos;
  return absl::StrCat(ipv6 ? "[" : "", uri.host, ipv6 ? "]:" : ":", uri.port);
}

Task<absl::StatusOr<UniqueFd>> ConnectSocket(Reactor& reactor, BlockingPool& pool, const Uri& uri,
                                             absl::Duration timeout) {
  const int64_t deadline = MonotonicNanoseconds() + absl::ToInt64Nanoseconds(timeout);
  absl::StatusOr<Addresses> addresses = co_await Find(reactor, pool, uri, timeout);
  if (!addresses.ok()) co_return addresses.status();
  int error = EADDRNOTAVAIL;
  for (size_t i = 0; i < addresses->found.size(); ++i) {
    const absl::Duration left = absl::Nanoseconds(deadline - MonotonicNanoseconds());
    const int64_t tries = static_cast<int64_t>(addresses->found.size() - i);
    UniqueFd socket = co_await ConnectTo(reactor, addresses->found[i], left / tries, &error);
    if (socket) co_return socket;
  }
  co_return ConnectError(uri, error);
}

}  // namespace berth::nbd
