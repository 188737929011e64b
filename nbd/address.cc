#include "nbd/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace berth::nbd {
namespace {

constexpr char kForms[] = "write unix:PATH, HOST:PORT or [IPV6]:PORT";

absl::Status Invalid(absl::string_view text, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat("address '", text, "': ", reason));
}

absl::StatusOr<Address> ParseUnix(absl::string_view text, absl::string_view path) {
  Address address;
  address.kind = Address::Kind::kUnix;
  if (path.empty()) return Invalid(text, "no path follows unix:");
  if (absl::StrContains(path, '\0')) return Invalid(text, "the path holds a NUL");
  if (path.size() > Address::kMaxUnixPath) {
    return Invalid(text, absl::StrCat("the path has ", path.size(), " bytes and a Unix socket's at most ",
                                      Address::kMaxUnixPath, "; use a shorter one"));
  }
  address.path = std::string(path);
  return address;
}

absl::StatusOr<uint16_t> ParsePort(absl::string_view text, absl::string_view port) {
  const bool digits = !port.empty() && std::all_of(port.begin(), port.end(), absl::ascii_isdigit);
  uint32_t value = 0;
  for (char digit : port.substr(0, 6)) value = value * 10 + static_cast<uint32_t>(digit - '0');
  if (!digits || port.size() > 5 || value > 65535) {
    return Invalid(text,
                   absl::StrCat("'", port, "' is no port; it is a number from 0 (any free one) to 65535"));
  }
  return static_cast<uint16_t>(value);
}

std::string SocketAddressText(const sockaddr_storage& address) {
  char host[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    const auto& ipv4 = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &ipv4.sin_addr, host, sizeof(host));
    return absl::StrCat(host, ":", ntohs(ipv4.sin_port));
  }
  const auto& ipv6 = reinterpret_cast<const sockaddr_in6&>(address);
  inet_ntop(AF_INET6, &ipv6.sin6_addr, host, sizeof(host));
  return absl::StrCat("[", host, "]:", ntohs(ipv6.sin6_port));
}

}  // namespace

absl::StatusOr<Address> Address::Parse(absl::string_view text) {
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, "unix:")) return ParseUnix(text, rest);
  if (text.empty()) return Invalid(text, absl::StrCat("it is empty; ", kForms));
  if (absl::StrContains(text, '/')) {
    return Invalid(text, absl::StrCat("a path needs unix: before it, and a URI is not accepted; ", kForms));
  }

  Address address;
  address.kind = Kind::kTcp;
  if (absl::ConsumePrefix(&rest, "[")) {
    const size_t end = rest.find(']');
    if (end == absl::string_view::npos) return Invalid(text, "the bracket is not closed");
    address.host = std::string(rest.substr(0, end));
    in6_addr ignored;
    if (inet_pton(AF_INET6, address.host.c_str(), &ignored) != 1) {
      return Invalid(text, absl::StrCat("'", address.host, "' in brackets is no IPv6 address"));
    }
    rest.remove_prefix(end + 1);
  } else {
    if (std::count(text.begin(), text.end(), ':') > 1) {
      return Invalid(text, absl::StrCat("it has several colons; ", kForms));
    }
    const size_t end = std::min(rest.find(':'), rest.size());
    address.host = std::string(rest.substr(0, end));
    const auto is_host_byte = [](unsigned char byte) {
      return absl::ascii_isalnum(byte) || byte == '.' || byte == '-' || byte == '_';
    };
    if (!std::all_of(address.host.begin(), address.host.end(), is_host_byte)) {
      return Invalid(text, absl::StrCat("'", address.host, "' is no host name"));
    }
    rest.remove_prefix(end);
  }
  if (rest.empty()) return address;
  if (!absl::ConsumePrefix(&rest, ":")) {
    return Invalid(text, absl::StrCat("':PORT' is wanted after the bracket, not '", rest, "'"));
  }
  absl::StatusOr<uint16_t> port = ParsePort(text, rest);
  if (!port.ok()) return port.status();
  address.port = *port;
  return address;
}

std::string Address::ToString() const {
  if (kind == Kind::kUnix) return absl::StrCat("unix:", path);
  if (absl::StrContains(host, ':')) return absl::StrCat("[", host, "]:", port);
  return absl::StrCat(host, ":", port);
}

std::string PeerName(int socket) {
  sockaddr_storage address = {};
  socklen_t length = sizeof(address);
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "unknown";
  if (address.ss_family == AF_INET || address.ss_family == AF_INET6) return SocketAddressText(address);
  ucred peer = {};
  length = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return "unix:";
  return absl::StrCat("unix:pid=", peer.pid, ",uid=", peer.uid);
}

std::string PeerSite(int socket) {
  sockaddr_storage address = {};
  socklen_t length = sizeof(address);
  if (getpeername(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "";
  char text[INET6_ADDRSTRLEN] = "";
  if (address.ss_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in&>(address).sin_addr, text, sizeof(text));
  } else if (address.ss_family == AF_INET6) {
    in6_addr network = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
    std::fill(network.s6_addr + 8, network.s6_addr + 16, uint8_t{0});
    inet_ntop(AF_INET6, &network, text, sizeof(text));
  }
  return text;
}

absl::StatusOr<Address> LocalAddress(int socket) {
  sockaddr_storage address = {};
  socklen_t length = sizeof(address);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return absl::ErrnoToStatus(errno, "getsockname");
  }
  if (address.ss_family != AF_UNIX) return Address::Parse(SocketAddressText(address));
  const auto& unix_address = reinterpret_cast<const sockaddr_un&>(address);
  const size_t size = length - std::min<size_t>(length, offsetof(sockaddr_un, sun_path));
  return Address::Parse(
      absl::StrCat("unix:", absl::string_view(unix_address.sun_path, strnlen(unix_address.sun_path, size))));
}

}  // namespace berth::nbd
