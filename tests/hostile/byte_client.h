// ByteClient: a client that sends what a test likes. Every wait has a deadline.
#ifndef BERTH_TESTS_HOSTILE_BYTE_CLIENT_H_
#define BERTH_TESTS_HOSTILE_BYTE_CLIENT_H_

#include <arpa/inet.h>
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
inline constexpr uint32_t kOptExportName = 1, kOptAbort = 2, kOptList = 3, kOptStartTls = 5, kOptInfo = 6,
                          kOptGo = 7, kOptStructured = 8, kOptListMeta = 9, kOptSetMeta = 10,
                          kOptExtended = 11;
inline std::string Opt(uint32_t option, absl::string_view data = "") {
  return "IHAVEOPT" + U32(option) + U32(static_cast<uint32_t>(data.size())) + std::string(data);
}
inline std::string Go(absl::string_view name) {
  return Opt(kOptGo, U32(static_cast<uint32_t>(name.size())) + std::string(name) + U16(0));
}

// Of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
inline std::string MetaQueries(absl::string_view name, size_t count, absl::string_view query) {
  std::string data =
      U32(static_cast<uint32_t>(name.size())) + std::string(name) + U32(static_cast<uint32_t>(count));
  for (size_t i = 0; i < count; ++i) {
    data += U32(static_cast<uint32_t>(query.size())) + std::string(query);
  }
  return data;
}

// proto.md, "Request message".
inline std::string Request(uint16_t command, uint64_t offset, uint32_t length, uint64_t cookie = 1) {
  return U32(0x25609513) + U16(0) + U16(command) + U64(cookie) + U64(offset) + U32(length);
}

// The same with extended headers.
inline constexpr uint16_t kPayloadLength = 1 << 5;
inline std::string ExtendedRequest(uint16_t command, uint64_t offset, uint64_t length, uint16_t flags = 0,
                                   uint64_t cookie = 1) {
  return U32(0x21e41c71) + U16(flags) + U16(command) + U64(cookie) + U64(offset) + U64(length);
}

inline uint64_t Number(absl::string_view bytes) {
  uint64_t number = 0;
  for (char byte : bytes) number = number << 8 | static_cast<uint8_t>(byte);
  return number;
}

// One reply to an option.
struct OptionReply {
  uint32_t option = 0;
  uint32_t type = 0;  // 0 where the server hung up, or sent something else.
  std::string data = "";

  bool final() const { return type == 1 || type == 0 || (type & 0x80000000) != 0; }
};

class ByteClient {
 public:
  explicit ByteClient(const std::string& path) : socket_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    if (connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) socket_.Reset();
  }

  // Over TCP, to 127.0.0.1, from an address of that network.
  explicit ByteClient(uint16_t port, const char* from = "127.0.0.1")
      : socket_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    inet_pton(AF_INET, from, &address.sin_addr);
    if (bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) socket_.Reset();
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) socket_.Reset();
  }

  int fd() const { return socket_.get(); }
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

  // As much as is taken without waiting.
  size_t SendSome(absl::string_view bytes) {
    const ssize_t sent = send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent < 0 ? 0 : static_cast<size_t>(sent);
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

  OptionReply ReceiveOptionReply() {
    const std::string header = Receive(20);
    if (header.size() < 20 || header.substr(0, 8) != U64(0x3e889045565a9)) return {};
    OptionReply reply = {.option = static_cast<uint32_t>(Number(header.substr(8, 4))),
                         .type = static_cast<uint32_t>(Number(header.substr(12, 4)))};
    const size_t length = Number(header.substr(16));
    reply.data = Receive(length);
    return reply.data.size() == length ? reply : OptionReply{};
  }
  // Sends an option; returns the last of its replies.
  OptionReply Ask(uint32_t option, absl::string_view data = "") {
    if (!Send(Opt(option, data))) return {};
    OptionReply reply;
    do {
      reply = ReceiveOptionReply();
    } while (!reply.final());
    return reply;
  }

  // The greeting, and the flags of a client of today.
  bool Greet() { return Receive(18).size() == 18 && Send(U32(3)); }
  // Into the transmission phase, with simple replies.
  bool Enter(absl::string_view name = "disk") {
    return Greet() && Send(Go(name)) && Receive(20 + 12 + 20).size() == 52;
  }
  // The same with extended headers, and base:allocation selected.
  bool EnterExtended(absl::string_view name = "disk") {
    return Greet() && Ask(kOptExtended).type == 1 &&
           Ask(kOptSetMeta, MetaQueries(name, 1, "base:allocation")).type == 1 && Send(Go(name)) &&
           Receive(20 + 12 + 20).size() == 52;
  }
  // The error of the next extended reply, which is one chunk; 0 for success, -1 where there is no reply.
  int ExtendedError() {
    const std::string header = Receive(32);
    if (header.size() < 32 || header.substr(0, 4) != U32(0x6e8a278c)) return -1;
    const uint64_t length = Number(header.substr(24));
    const std::string payload = Receive(length);
    if (payload.size() != length) return -1;
    const bool error = (Number(header.substr(6, 2)) & 0x8000) != 0;
    return error ? static_cast<int>(Number(payload.substr(0, 4))) : 0;
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
