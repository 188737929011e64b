#include "tests/bench/load.h"

#include <endian.h>
#include <fcntl.h>
#include <linux/nbd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <deque>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "image/io/unique_fd.h"
#include "nbd/tls/openssl_error.h"
#include "nbd/tls/openssl_handles.h"

namespace berth::bench {
namespace {

constexpr uint64_t kOptionMagic = 0x49484156454F5054;
constexpr uint32_t kOptionStartTls = 5, kOptionGo = 7;
constexpr uint32_t kReplyAck = 1;
constexpr uint32_t kReplyInfo = 3;
constexpr uint16_t kCommandFlush = 3, kCommandTrim = 4, kCommandWriteZeroes = 6;
constexpr size_t kPage = 4096;
constexpr int kSocketBuffer = 4 << 20;
constexpr int kPatienceMs = 10'000;

template <typename T>
void AppendBigEndian(std::string* out, T value) {
  for (int shift = (sizeof(T) - 1) * 8; shift >= 0; shift -= 8)
    out->push_back(static_cast<char>(value >> shift));
}

// A socket, in clear or under TLS.
class Stream {
 public:
  explicit Stream(UniqueFd fd) : fd_(std::move(fd)) {}

  int fd() const { return fd_.get(); }

  absl::Status StartTls() {
    static SSL_CTX* const context = SSL_CTX_new(TLS_client_method());
    tls_.reset(SSL_new(context));
    SSL_set_mode(tls_.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_set_fd(tls_.get(), fd());
    if (SSL_connect(tls_.get()) == 1) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("TLS: ", nbd::TakeOpensslErrors()));
  }

  // During the handshake, where they wait.
  absl::Status ReadExactly(void* buffer, size_t size) {
    size_t done = 0;
    while (tls_ != nullptr && done < size) {
      const int count =
          SSL_read(tls_.get(), static_cast<char*>(buffer) + done, static_cast<int>(size - done));
      if (count <= 0) break;
      done += static_cast<size_t>(count);
    }
    if (tls_ == nullptr)
      done = static_cast<size_t>(std::max<ssize_t>(recv(fd(), buffer, size, MSG_WAITALL), 0));
    if (done == size) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat("the server closed the connection during the handshake: ", strerror(errno)));
  }
  void BeginTransmission() {
    if (tls_ != nullptr) fcntl(fd(), F_SETFL, fcntl(fd(), F_GETFL) | O_NONBLOCK);
  }

  // As send(2) and recv(2) with MSG_DONTWAIT.
  ssize_t Send(const void* data, size_t size) {
    if (tls_ == nullptr) return send(fd(), data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    return Result(SSL_write(tls_.get(), data, static_cast<int>(size)));
  }
  ssize_t Receive(char* data, size_t size) {
    if (tls_ == nullptr) return recv(fd(), data, size, MSG_DONTWAIT);
    // All that has come, as poll(2) does not see what the library holds.
    ssize_t total = 0;
    while (static_cast<size_t>(total) < size) {
      const ssize_t count =
          Result(SSL_read(tls_.get(), data + total, static_cast<int>(size - static_cast<size_t>(total))));
      if (count <= 0) return total > 0 ? total : count;
      total += count;
    }
    return total;
  }
  bool HasMore() const { return tls_ != nullptr && SSL_pending(tls_.get()) > 0; }

 private:
  ssize_t Result(int result) {
    if (result > 0) return result;
    const int error = SSL_get_error(tls_.get(), result);
    errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
    return -1;
  }

  UniqueFd fd_;
  nbd::SslConnection tls_;
};

absl::StatusOr<UniqueFd> ConnectTo(const LoadTarget& target) {
  UniqueFd fd;
  int result;
  if (!target.socket_path.empty()) {
    fd.Reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
    if (target.socket_path.size() >= sizeof(address.sun_path))
      return absl::InvalidArgumentError("socket path too long");
    memcpy(address.sun_path, target.socket_path.data(), target.socket_path.size());
    result = connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address));
  } else {
    fd.Reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(target.port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    result = connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address));
    const int one = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  }
  if (result != 0) return absl::ErrnoToStatus(errno, "connect");
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDBUF, &kSocketBuffer, sizeof(kSocketBuffer));
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &kSocketBuffer, sizeof(kSocketBuffer));
  return fd;
}

// Fixed newstyle, NBD_OPT_GO. Returns the export's size.
absl::StatusOr<uint64_t> Handshake(Stream& stream, const std::string& name, bool tls) {
  uint8_t greeting[18];
  if (absl::Status status = stream.ReadExactly(greeting, sizeof(greeting)); !status.ok()) return status;
  std::string hello;
  AppendBigEndian<uint32_t>(&hello, greeting[17] & 3);  // What was offered of FIXED_NEWSTYLE and NO_ZEROES.
  if (tls) {
    AppendBigEndian<uint64_t>(&hello, kOptionMagic);
    AppendBigEndian<uint32_t>(&hello, kOptionStartTls);
    AppendBigEndian<uint32_t>(&hello, 0);
    if (stream.Send(hello.data(), hello.size()) < 0) return absl::ErrnoToStatus(errno, "send");
    uint8_t reply[20];
    if (absl::Status status = stream.ReadExactly(reply, sizeof(reply)); !status.ok()) return status;
    if (reply[15] != kReplyAck) return absl::UnavailableError("the server refused TLS");
    if (absl::Status status = stream.StartTls(); !status.ok()) return status;
    hello.clear();
  }
  AppendBigEndian<uint64_t>(&hello, kOptionMagic);
  AppendBigEndian<uint32_t>(&hello, kOptionGo);
  AppendBigEndian<uint32_t>(&hello, static_cast<uint32_t>(name.size() + 6));
  AppendBigEndian<uint32_t>(&hello, static_cast<uint32_t>(name.size()));
  hello += name;
  AppendBigEndian<uint16_t>(&hello, 0);
  if (stream.Send(hello.data(), hello.size()) < 0) return absl::ErrnoToStatus(errno, "send");
  uint64_t size = 0;
  while (true) {
    uint8_t header[20];
    if (absl::Status status = stream.ReadExactly(header, sizeof(header)); !status.ok()) return status;
    uint32_t type, length;
    memcpy(&type, header + 12, 4);
    memcpy(&length, header + 16, 4);
    type = be32toh(type);
    std::vector<uint8_t> payload(be32toh(length));
    if (!payload.empty()) {
      if (absl::Status status = stream.ReadExactly(payload.data(), payload.size()); !status.ok())
        return status;
    }
    if (type == kReplyAck) {
      stream.BeginTransmission();
      return size;
    }
    if (type != kReplyInfo) {
      return absl::UnavailableError(absl::StrCat("the server refused export \"", name,
                                                 "\": ", std::string(payload.begin(), payload.end())));
    }
    if (payload.size() >= 12 && payload[0] == 0 && payload[1] == 0) {
      memcpy(&size, payload.data() + 2, 8);
      size = be64toh(size);
    }
  }
}

class Connection {
 public:
  Connection(Stream stream, uint64_t size, const Workload& workload, uint64_t seed)
      : stream_(std::move(stream)),
        workload_(workload),
        blocks_(size / workload.block_size),
        random_(seed * 0x9E3779B97F4A7C15 + 1),
        slots_(static_cast<size_t>(workload.depth)),
        payload_(workload.block_size, 'b'),
        inbox_(1 << 20) {}

  int fd() const { return stream_.fd(); }
  bool has_more() const { return stream_.HasMore(); }
  bool wants_to_write() const { return sent_ < outbox_.size(); }
  uint64_t completed() const { return completed_; }
  int in_flight() const { return in_flight_; }

  void Start() {
    for (uint32_t slot = 0; slot < slots_.size(); ++slot) Enqueue(slot);
  }

  // Sends what is queued, as far as the socket takes it.
  absl::Status Send() {
    while (sent_ < outbox_.size()) {
      size_t length = outbox_.size() - sent_;
      if (workload_.kernel_style) length = segments_.front();
      const ssize_t count = stream_.Send(outbox_.data() + sent_, length);
      if (count < 0 && errno == EAGAIN) return absl::OkStatus();
      if (count < 0) return absl::ErrnoToStatus(errno, "send");
      sent_ += static_cast<size_t>(count);
      if (workload_.kernel_style) {
        segments_.front() -= static_cast<size_t>(count);
        if (segments_.front() == 0) segments_.pop_front();
      }
    }
    outbox_.clear();
    sent_ = 0;
    return absl::OkStatus();
  }

  // Takes the replies that have come; each makes room for a new request while `refill` is true.
  absl::Status Receive(bool refill) {
    const ssize_t count = stream_.Receive(inbox_.data() + held_, inbox_.size() - held_);
    if (count < 0 && errno == EAGAIN) return absl::OkStatus();
    if (count <= 0) return absl::UnavailableError("the server closed the connection");
    const size_t end = held_ + static_cast<size_t>(count);
    size_t position = 0;
    while (position < end) {
      if (skip_ > 0) {
        const size_t step = std::min(skip_, end - position);
        skip_ -= step;
        position += step;
        if (skip_ == 0) Finish(current_, refill);
        continue;
      }
      if (end - position < sizeof(nbd_reply)) break;
      nbd_reply reply;
      memcpy(&reply, inbox_.data() + position, sizeof(reply));
      position += sizeof(reply);
      if (be32toh(reply.magic) != NBD_REPLY_MAGIC) return absl::DataLossError("bad magic in a reply");
      if (reply.error != 0)
        return absl::InternalError(absl::StrCat("error ", be32toh(reply.error), " in a reply"));
      memcpy(&current_, reply.handle, sizeof(current_));
      if (slots_[current_] == NBD_CMD_READ) {
        skip_ = workload_.block_size;
      } else {
        Finish(current_, refill);
      }
    }
    held_ = end - position;
    memmove(inbox_.data(), inbox_.data() + position, held_);
    return absl::OkStatus();
  }

 private:
  void Finish(uint32_t slot, bool refill) {
    ++completed_;
    --in_flight_;
    if (refill) Enqueue(slot);
  }

  uint64_t Random() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }

  uint16_t NextCommand() {
    switch (workload_.kind) {
      case Kind::kRead:
        return NBD_CMD_READ;
      case Kind::kWrite:
        return NBD_CMD_WRITE;
      case Kind::kMixed:
        return Random() % 10 < 7 ? NBD_CMD_READ : NBD_CMD_WRITE;
      case Kind::kFlush:
        return kCommandFlush;
      case Kind::kZero:
        return kCommandWriteZeroes;
      case Kind::kTrim:
        return kCommandTrim;
      case Kind::kWriteFlush:
        return ++alternate_ % 2 == 0 ? kCommandFlush : uint16_t{NBD_CMD_WRITE};
    }
    return NBD_CMD_READ;
  }

  void Enqueue(uint32_t slot) {
    const uint16_t command = NextCommand();
    const bool ranged = command != kCommandFlush;
    slots_[slot] = command;
    nbd_request request = {};
    request.magic = htobe32(NBD_REQUEST_MAGIC);
    request.type = htobe32(command);
    memcpy(request.handle, &slot, sizeof(slot));
    request.from = ranged ? htobe64((Random() % blocks_) * workload_.block_size) : 0;
    request.len = ranged ? htobe32(workload_.block_size) : 0;
    outbox_.append(reinterpret_cast<const char*>(&request), sizeof(request));
    if (workload_.kernel_style) segments_.push_back(sizeof(request));
    if (command == NBD_CMD_WRITE) {
      outbox_ += payload_;
      for (size_t left = payload_.size(); workload_.kernel_style && left > 0; left -= std::min(left, kPage)) {
        segments_.push_back(std::min(left, kPage));
      }
    }
    ++in_flight_;
  }

  Stream stream_;
  const Workload& workload_;
  const uint64_t blocks_;
  uint64_t random_;
  std::vector<uint16_t> slots_;  // The command that is in flight under each cookie.
  const std::string payload_;
  std::string outbox_;
  size_t sent_ = 0;
  std::deque<size_t> segments_;  // kernel_style: how the rest of the outbox is cut into sends.
  std::vector<char> inbox_;
  size_t held_ = 0;  // Bytes of an incomplete reply at the inbox's start.
  size_t skip_ = 0;  // Payload still to come of the reply in current_.
  uint32_t current_ = 0;
  uint64_t completed_ = 0;
  uint64_t alternate_ = 0;
  int in_flight_ = 0;
};

using Connections = std::vector<std::unique_ptr<Connection>>;

absl::Status Turn(Connections& connections, std::vector<pollfd>& polled, bool refill) {
  for (size_t i = 0; i < connections.size(); ++i) {
    const short events = connections[i]->wants_to_write() ? POLLIN | POLLOUT : POLLIN;
    polled[i] = {.fd = connections[i]->fd(), .events = events, .revents = 0};
  }
  const int ready = poll(polled.data(), polled.size(), kPatienceMs);
  if (ready == 0) return absl::DeadlineExceededError(absl::StrCat("no answer for ", kPatienceMs, " ms"));
  for (size_t i = 0; i < connections.size(); ++i) {
    if (polled[i].revents & (POLLIN | POLLHUP | POLLERR)) {
      do {
        if (absl::Status status = connections[i]->Receive(refill); !status.ok()) return status;
      } while (connections[i]->has_more());
    }
    if (absl::Status status = connections[i]->Send(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

uint64_t Completed(const Connections& connections) {
  uint64_t sum = 0;
  for (const auto& connection : connections) sum += connection->completed();
  return sum;
}

int InFlight(const Connections& connections) {
  int sum = 0;
  for (const auto& connection : connections) sum += connection->in_flight();
  return sum;
}

}  // namespace

absl::StatusOr<LoadResult> RunLoad(const LoadTarget& target, const Workload& workload, absl::Duration warm_up,
                                   absl::Duration duration, absl::FunctionRef<void()> mark) {
  Connections connections;
  for (int i = 0; i < workload.connections; ++i) {
    absl::StatusOr<UniqueFd> fd = ConnectTo(target);
    if (!fd.ok()) return fd.status();
    Stream stream(*std::move(fd));
    absl::StatusOr<uint64_t> size = Handshake(stream, target.export_name, target.tls);
    if (!size.ok()) return size.status();
    if (*size < workload.block_size)
      return absl::FailedPreconditionError("the export is smaller than one request");
    connections.push_back(
        std::make_unique<Connection>(std::move(stream), *size, workload, static_cast<uint64_t>(i) + 1));
    connections.back()->Start();
    if (absl::Status status = connections.back()->Send(); !status.ok()) return status;
  }
  std::vector<pollfd> polled(connections.size());
  for (const absl::Time end = absl::Now() + warm_up; absl::Now() < end;) {
    if (absl::Status status = Turn(connections, polled, /*refill=*/true); !status.ok()) return status;
  }
  mark();
  const uint64_t before = Completed(connections);
  const absl::Time start = absl::Now();
  while (absl::Now() < start + duration) {
    if (absl::Status status = Turn(connections, polled, /*refill=*/true); !status.ok()) return status;
  }
  const LoadResult result = {.requests = Completed(connections) - before, .elapsed = absl::Now() - start};
  mark();
  while (InFlight(connections) > 0) {
    if (absl::Status status = Turn(connections, polled, /*refill=*/false); !status.ok()) return status;
  }
  return result;
}

}  // namespace berth::bench
