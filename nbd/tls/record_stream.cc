#include "nbd/tls/record_stream.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

namespace berth::nbd {
namespace {

// A connection at rest waits with the least; one whose receives fill what they are given gets more.
constexpr size_t kLeastSpace = 4096;
constexpr size_t kMostSpace = size_t{128} << 10;

// BIO_CTRL_SET_KTLS, which OpenSSL's public header only mentions; `number` tells sending from receiving.
constexpr int kGiveKeysToKernel = 72;

// The memory of records in the making, which a thread's connections use in turn: what leaves at once, as most
// does, costs an idle connection nothing.
std::vector<char>& SpareOutput() {
  static thread_local std::vector<char> spare;
  return spare;
}

void GiveBack(std::vector<char>& memory) {
  memory.clear();
  if (SpareOutput().capacity() < memory.capacity()) SpareOutput().swap(memory);
  memory = std::vector<char>();
}

}  // namespace

RecordStream::RecordStream(int socket)
    : socket_(socket), socket_bio_(BIO_new_socket(socket, BIO_NOCLOSE)), space_(kLeastSpace) {
  // Makes the socket ready to be given keys later; fails where the kernel has no such thing.
  setsockopt(socket, SOL_TCP, TCP_ULP, "tls", sizeof("tls"));
}

RecordStream::~RecordStream() {
  GiveBack(output_);
  GiveBack(leaving_);
}

BIO_METHOD* RecordStream::Method() {
  static BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "records");
    BIO_meth_set_write(made, &RecordStream::Write);
    BIO_meth_set_read(made, &RecordStream::Read);
    BIO_meth_set_ctrl(made, &RecordStream::Control);
    return made;
  }();
  return method;
}

BIO* RecordStream::NewBio() {
  BIO* bio = BIO_new(Method());
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  return bio;
}

int RecordStream::Write(BIO* bio, const char* data, int size) {
  auto* self = static_cast<RecordStream*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  if (self->kernel_encrypts()) {
    const int flags = fcntl(self->socket_, F_GETFL);
    fcntl(self->socket_, F_SETFL, flags | O_NONBLOCK);
    const int written = BIO_write(self->socket_bio_.get(), data, size);
    fcntl(self->socket_, F_SETFL, flags);
    if (written <= 0 && BIO_should_retry(self->socket_bio_.get())) BIO_set_retry_write(bio);
    return written;
  }
  if (self->output_.capacity() == 0) self->output_.swap(SpareOutput());
  self->output_.insert(self->output_.end(), data, data + size);
  return size;
}

int RecordStream::Read(BIO* bio, char* data, int size) {
  auto* self = static_cast<RecordStream*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  const size_t count = std::min(self->input_end_ - self->input_begin_, static_cast<size_t>(size));
  if (count == 0) {
    BIO_set_retry_read(bio);
    return -1;
  }
  memcpy(data, self->input_.data() + self->input_begin_, count);
  self->input_begin_ += count;
  return static_cast<int>(count);
}

long RecordStream::Control(BIO* bio, int command, long number, void* pointer) {
  auto* self = static_cast<RecordStream*>(BIO_get_data(bio));
  switch (command) {
    case BIO_CTRL_FLUSH:
      // Asked for after each flight of the handshake, and before the kernel gets the keys: what was encrypted
      // here must be in the socket by then.
      BIO_clear_retry_flags(bio);
      if (self->sending_) return 1;  // It leaves behind what is on its way.
      if (const int result = self->SendOutput(); result != 0) {
        if (result == -EAGAIN) BIO_set_retry_write(bio);
        return -1;
      }
      return 1;
    case BIO_CTRL_EOF:
    case BIO_CTRL_PUSH:
    case BIO_CTRL_POP:
      return 0;
    case kGiveKeysToKernel: {
      // What is received stays with the library, which in this version can hand it over for TLS 1.2 only.
      if (number == 0) return 0;
      const long result = BIO_ctrl(self->socket_bio_.get(), command, number, pointer);
      self->kernel_encrypts_ = BIO_get_ktls_send(self->socket_bio_.get());
      return result;
    }
    case BIO_CTRL_GET_KTLS_SEND:
      return self->kernel_encrypts_ ? 1 : 0;
    case BIO_CTRL_GET_KTLS_RECV:
      return 0;
    default:
      break;
  }
  return BIO_ctrl(self->socket_bio_.get(), command, number, pointer);
}

iovec RecordStream::PrepareSpace() {
  assert(input_begin_ == input_end_);
  input_begin_ = input_end_ = 0;
  if (input_.size() != space_) input_ = std::vector<uint8_t>(space_);
  return {input_.data(), input_.size()};
}

void RecordStream::Commit(size_t count) {
  input_end_ = count;
  if (count == input_.size()) space_ = std::min(space_ * 4, kMostSpace);
}

void RecordStream::Shrink() {
  space_ = kLeastSpace;
  if (input_begin_ == input_end_) input_ = std::vector<uint8_t>();
}

iovec RecordStream::NextOutput() {
  if (sent_ == leaving_.size()) {
    leaving_.clear();
    leaving_.swap(output_);
    sent_ = 0;
  }
  return {leaving_.data() + sent_, leaving_.size() - sent_};
}

void RecordStream::Sent(size_t count) {
  sent_ += count;
  if (sent_ < leaving_.size()) return;
  GiveBack(leaving_);
  sent_ = 0;
}

int RecordStream::SendOutput() {
  if (sending_) return -EAGAIN;
  while (has_output()) {
    const iovec records = NextOutput();
    const ssize_t sent = send(socket_, records.iov_base, records.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return -errno;
    Sent(static_cast<size_t>(sent));
  }
  return 0;
}

}  // namespace berth::nbd
