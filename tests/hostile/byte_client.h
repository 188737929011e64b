// ByteClient: a client that sends what a test likes. Every wait has a deadline.
#ifndef BERTH_TESTS_HOSTILE_BYTE_CLIENT_H_
#define BERTH_TESTS_HOSTILE_BYTE_CLIENT_H_

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"
#include "image/io/unique_fd.h"

namespace berth::testing {

inline std::string U16(uint16_t v) { return {static_cast<char>(v >> 8), static_cast<char>(v)}; }
inline std::string U32(uint32_t v) {
  return U16(static_cast<uint16_t>(v >> 16)) + U16(static_cast<uint16_t>(v));
}
inline std::string U64(uint64_t v) {
  return U32(static_cast<uint32_t>(v >> 32)) + U32(static_cast<uint32_t>(v));
}

// proto.md, "Newstyle negotiation".
inline constexpr uint32_t kOptExportName = 1, kOptAbort = 2, kOptList = 3, kOptGo = 7, kOptStructured = 8;
inline std::string Opt(uint32_t option, absl::string_view data = "") {
  return "IHAVEOPT" + U32(option) + U32(static_cast<uint32_t>(data.size())) + std::string(data);
}
inline std::string Go(absl::string_view name) {
  return Opt(kOptGo, U32(static_cast<uint32_t>(name.size())) + std::string(name) + U16(0));
}

// proto.md, "Request message".
inline std::string Request(uint16_t command, uint64_t offset, uint32_t length, uint64_t cookie = 1) {
  return U32(0x25609513) + U16(0) + U16(command) + U64(cookie) + U64(offset) + U32(length);
}

class ByteClient {
 public:
  explicit ByteClient(const std::string& path) : socket_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    if (connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) socket_.Reset();
  }

  // Over TCP, to 127.0.0.1.
  explicit ByteClient(uint16_t port) : socket_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) socket_.Reset();
  }

  bool connected() const { return static_cast<bool>(socket_); }
  void Close() { socket_.Reset(); }

  // Whether all of it was taken.
  bool Send(absl::string_view bytes) {
    while (!bytes.empty()) {
      if (!Wait(POLLOUT)) return false;
      const ssize_t sent = send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }

  // `size` bytes, or fewer where the server hung up.
  std::string Receive(size_t size) {
    std::string bytes;
    char buffer[65536];
    while (bytes.size() < size && Wait(POLLIN)) {
      const ssize_t count = recv(socket_.get(), buffer, std::min(sizeof(buffer), size - bytes.size()), 0);
      if (count <= 0) break;
      bytes.append(buffer, static_cast<size_t>(count));
    }
    return bytes;
  }

  // Whether the server hangs up, after whatever it still says.
  bool HangsUp() {
    char buffer[65536];
    while (Wait(POLLIN)) {
      if (recv(socket_.get(), buffer, sizeof(buffer), 0) <= 0) return true;
    }
    return false;
  }

  // The greeting, and the flags of a client of today.
  bool Greet() { return Receive(18).size() == 18 && Send(U32(3)); }
  // Into the transmission phase, with simple replies.
  bool Enter(absl::string_view name = "disk") {
    return Greet() && Send(Go(name)) && Receive(20 + 12 + 20).size() == 52;
  }
  // Whether a read of 4 KiB is answered.
  bool Reads() {
    return Send(Request(0, 0, 4096)) &&
           Receive(16 + 4096) == U32(0x67446698) + U32(0) + U64(1) + std::string(4096, '\0');
  }

 private:
  bool Wait(short events) const {
    pollfd wait = {.fd = socket_.get(), .events = events, .revents = 0};
    return socket_ && poll(&wait, 1, 30'000) == 1;
  }

  UniqueFd socket_;
};

}  // namespace berth::testing

#endif  // BERTH_TESTS_HOSTILE_BYTE_CLIENT_H_
