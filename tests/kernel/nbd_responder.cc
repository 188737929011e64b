#include "tests/kernel/nbd_responder.h"

#include <endian.h>
#include <linux/nbd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace berth {
namespace {

// linux/nbd.h of Debian 12 does not have it.
constexpr uint32_t kWriteZeroes = 6;
constexpr uint32_t kOutOfRange = 22;  // EINVAL of the NBD protocol.

bool ReceiveAll(int fd, void* data, size_t size) {
  return size == 0 || recv(fd, data, size, MSG_WAITALL) == static_cast<ssize_t>(size);
}

bool SendAll(int fd, const uint8_t* data, size_t size) {
  while (size > 0) {
    const ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    data += sent;
    size -= static_cast<size_t>(sent);
  }
  return true;
}

}  // namespace

NbdResponder::NbdResponder(uint64_t size) : image_(size) {}

NbdResponder::~NbdResponder() {
  ReleaseReads();
  CloseKernelEnds();
  for (size_t i = 0; i < sockets_.size(); ++i) Kill(i);
}

std::vector<int> NbdResponder::AddSockets(size_t count) {
  std::vector<int> kernel_ends;
  for (size_t i = 0; i < count; ++i) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      perror("socketpair");
      abort();
    }
    auto socket = std::make_unique<Socket>();
    socket->kernel_end = ends[0];
    socket->server_end = ends[1];
    socket->thread = std::thread([this, &socket = *socket] { Serve(socket); });
    kernel_ends.push_back(ends[0]);
    sockets_.push_back(std::move(socket));
  }
  return kernel_ends;
}

void NbdResponder::CloseKernelEnds() {
  for (const auto& socket : sockets_) {
    if (socket->kernel_end >= 0) close(socket->kernel_end);
    socket->kernel_end = -1;
  }
}

void NbdResponder::Kill(size_t number) {
  Socket& socket = *sockets_[number];
  if (!socket.thread.joinable()) return;
  shutdown(socket.server_end, SHUT_RDWR);
  socket.thread.join();
  close(socket.server_end);
}

void NbdResponder::HoldReads() {
  std::lock_guard<std::mutex> lock(mutex_);
  hold_reads_ = true;
}

void NbdResponder::WaitUntilHolding() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return holding_; });
}

void NbdResponder::ReleaseReads() {
  std::lock_guard<std::mutex> lock(mutex_);
  hold_reads_ = false;
  changed_.notify_all();
}

void NbdResponder::WaitForDisconnects(size_t count) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return disconnects_ >= count; });
}

void NbdResponder::WaitForEndOfFile(size_t number) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return sockets_[number]->ended; });
}

void NbdResponder::Write(uint64_t offset, const std::vector<uint8_t>& bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::copy(bytes.begin(), bytes.end(), image_.begin() + static_cast<ptrdiff_t>(offset));
}

std::vector<uint8_t> NbdResponder::Read(uint64_t offset, size_t length) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto begin = image_.begin() + static_cast<ptrdiff_t>(offset);
  return std::vector<uint8_t>(begin, begin + static_cast<ptrdiff_t>(length));
}

void NbdResponder::Resize(uint64_t size) {
  std::lock_guard<std::mutex> lock(mutex_);
  image_.resize(size);
}

void NbdResponder::Serve(Socket& socket) {
  while (ServeOne(socket.server_end)) {
  }
  std::lock_guard<std::mutex> lock(mutex_);
  socket.ended = true;
  changed_.notify_all();
}

bool NbdResponder::ServeOne(int fd) {
  nbd_request request;
  if (!ReceiveAll(fd, &request, sizeof(request))) return false;
  const uint32_t type = be32toh(request.type) & 0xffff;
  const uint64_t offset = be64toh(request.from);
  const uint32_t length = be32toh(request.len);
  std::vector<uint8_t> payload(type == NBD_CMD_WRITE ? length : 0);
  if (!ReceiveAll(fd, payload.data(), payload.size())) return false;

  nbd_reply reply = {};
  reply.magic = htobe32(NBD_REPLY_MAGIC);
  memcpy(&reply.handle, &request.handle, sizeof(reply.handle));
  std::vector<uint8_t> answer(sizeof(reply));
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (type == NBD_CMD_DISC) {
      ++disconnects_;
      changed_.notify_all();
      return true;  // End-of-file follows.
    }
    if (type == NBD_CMD_READ && hold_reads_) {
      holding_ = true;
      changed_.notify_all();
      changed_.wait(lock, [this] { return !hold_reads_; });
    }
    const auto begin = image_.begin() + static_cast<ptrdiff_t>(std::min<uint64_t>(offset, image_.size()));
    if (offset > image_.size() || length > image_.size() - offset) {
      reply.error = htobe32(kOutOfRange);
    } else if (type == NBD_CMD_READ) {
      answer.insert(answer.end(), begin, begin + length);
    } else if (type == NBD_CMD_WRITE) {
      std::copy(payload.begin(), payload.end(), begin);
    } else if (type == NBD_CMD_TRIM || type == kWriteZeroes) {
      std::fill(begin, begin + length, 0);
    }
  }
  memcpy(answer.data(), &reply, sizeof(reply));
  return SendAll(fd, answer.data(), answer.size());
}

}  // namespace berth
