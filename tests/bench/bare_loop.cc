// The bare loop: the least that a server can do, as the yardstick for every other one.
//
//   bare_loop SOCKET|PORT FILE
//
// A thread a connection: one large receive, pread or pwrite for each request in it, one send for all the
// replies. It trusts its client, has one export and no limits. What it costs is what the system calls and the
// copies cost.
#include <endian.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/nbd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr uint16_t kCommandDisconnect = 2, kCommandFlush = 3, kCommandTrim = 4, kCommandWriteZeroes = 6;
constexpr int kSocketBuffer = 4 << 20;

struct Peer {
  int fd;
  std::vector<uint8_t> in = std::vector<uint8_t>(size_t{4} << 20);
  size_t held = 0;
  std::vector<uint8_t> out = std::vector<uint8_t>(size_t{40} << 20);
};

bool SendAll(int fd, const uint8_t* data, size_t size) {
  while (size > 0) {
    const ssize_t count = send(fd, data, size, MSG_NOSIGNAL);
    if (count <= 0) return false;
    data += count;
    size -= static_cast<size_t>(count);
  }
  return true;
}

// Knows one conversation: flags, NBD_OPT_GO, transmission.
bool Handshake(int fd, uint64_t size) {
  uint8_t greeting[18] = {'N', 'B', 'D', 'M', 'A', 'G', 'I', 'C', 'I',
                          'H', 'A', 'V', 'E', 'O', 'P', 'T', 0,   3};
  uint8_t option[20];
  if (!SendAll(fd, greeting, sizeof(greeting)) || recv(fd, option, 20, MSG_WAITALL) != 20) return false;
  uint32_t length;
  memcpy(&length, option + 16, 4);
  std::vector<uint8_t> data(be32toh(length));
  if (recv(fd, data.data(), data.size(), MSG_WAITALL) != static_cast<ssize_t>(data.size())) return false;
  uint8_t reply[20 + 12 + 20] = {0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 12};
  const uint64_t big_endian_size = htobe64(size);
  memcpy(reply + 22, &big_endian_size, 8);
  reply[31] = 0x6d;  // HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES
  memcpy(reply + 32, reply, 12);
  reply[47] = 1;
  return SendAll(fd, reply, sizeof(reply));
}

// Serves what one receive brings. False when the peer has left.
bool Serve(Peer& peer, int file) {
  const ssize_t received = recv(peer.fd, peer.in.data() + peer.held, peer.in.size() - peer.held, 0);
  if (received <= 0) return false;
  const size_t end = peer.held + static_cast<size_t>(received);
  size_t position = 0, filled = 0;
  while (end - position >= sizeof(nbd_request)) {
    nbd_request request;
    memcpy(&request, peer.in.data() + position, sizeof(request));
    const uint16_t command = static_cast<uint16_t>(be32toh(request.type));
    const uint64_t offset = be64toh(request.from);
    const uint32_t length = be32toh(request.len);
    const size_t payload = command == NBD_CMD_WRITE ? length : 0;
    if (end - position < sizeof(request) + payload) break;
    nbd_reply reply = {htobe32(NBD_REPLY_MAGIC), 0, {}};
    memcpy(reply.handle, request.handle, sizeof(reply.handle));
    const size_t answer = sizeof(reply) + (command == NBD_CMD_READ ? length : 0);
    if (filled + answer > peer.out.size()) {
      if (!SendAll(peer.fd, peer.out.data(), filled)) return false;
      filled = 0;
    }
    uint8_t* data = peer.out.data() + filled + sizeof(reply);
    ssize_t result = 0;
    switch (command) {
      case NBD_CMD_READ:
        result = pread(file, data, length, static_cast<off_t>(offset));
        break;
      case NBD_CMD_WRITE:
        result =
            pwrite(file, peer.in.data() + position + sizeof(request), length, static_cast<off_t>(offset));
        break;
      case kCommandFlush:
        result = fdatasync(file);
        break;
      case kCommandTrim:
      case kCommandWriteZeroes:
        result =
            fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), length);
        break;
      case kCommandDisconnect:
        return false;
    }
    if (result < 0) reply.error = htobe32(static_cast<uint32_t>(errno));
    memcpy(peer.out.data() + filled, &reply, sizeof(reply));
    filled += answer;
    position += sizeof(request) + payload;
  }
  peer.held = end - position;
  memmove(peer.in.data(), peer.in.data() + position, peer.held);
  return SendAll(peer.fd, peer.out.data(), filled);
}

// A Unix socket's path, or the port of a TCP socket on the loopback interface.
int Listen(const char* where) {
  const int port = atoi(where);
  const int listener = socket(port > 0 ? AF_INET : AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int result;
  if (port > 0) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    result = bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  } else {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, where, sizeof(address.sun_path) - 1);
    result = bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  }
  return result == 0 && listen(listener, 64) == 0 ? listener : -1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: bare_loop SOCKET|PORT FILE\n");
    return 2;
  }
  const int file = open(argv[2], O_RDWR | O_CLOEXEC);
  struct stat info;
  if (file < 0 || fstat(file, &info) != 0) {
    perror(argv[2]);
    return 1;
  }
  const int listener = Listen(argv[1]);
  if (listener < 0) {
    perror(argv[1]);
    return 1;
  }
  while (true) {
    const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) return 1;
    std::thread([fd, file, size = static_cast<uint64_t>(info.st_size)] {
      const int one = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one,
                 sizeof(one));  // Fails on a Unix socket, which has no need of it.
      setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBuffer, sizeof(kSocketBuffer));
      Peer peer{.fd = fd};
      if (Handshake(fd, size)) {
        while (Serve(peer, file)) {
        }
      }
      close(fd);
    }).detach();
  }
}
