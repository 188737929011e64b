#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "nbd/transport.h"

namespace berth::nbd {
namespace {

msghdr MessageOf(absl::Span<const iovec> vectors) {
  msghdr message = {};
  message.msg_iov = const_cast<iovec*>(vectors.data());
  message.msg_iovlen = vectors.size();
  return message;
}

int ResultOf(ssize_t result) { return result < 0 ? -errno : static_cast<int>(result); }

class SocketTransport final : public PlainTransport {
 public:
  SocketTransport(Reactor& reactor, UniqueFd socket) : reactor_(reactor), socket_(std::move(socket)) {
    // The ring does not wait on a descriptor that is O_NONBLOCK; what must not wait here says MSG_DONTWAIT.
    const int flags = fcntl(socket_.get(), F_GETFL);
    if ((flags & O_NONBLOCK) != 0) fcntl(socket_.get(), F_SETFL, flags & ~O_NONBLOCK);
  }

  Task<int> Receive(absl::Span<const iovec> vectors) override {
    int result = -EINTR;
    while (result == -EINTR || result == -EAGAIN) {
      msghdr message = MessageOf(vectors);
      Reactor::Operation operation =
          vectors.size() == 1 ? reactor_.Receive(socket_.get(), vectors[0].iov_base, vectors[0].iov_len)
                              : reactor_.ReceiveMessage(socket_.get(), &message);
      receiving_ = &operation;
      result = co_await operation;
      receiving_ = nullptr;
    }
    co_return result;
  }

  int TryReceive(absl::Span<const iovec> vectors) override {
    msghdr message = MessageOf(vectors);
    return ResultOf(recvmsg(socket_.get(), &message, MSG_DONTWAIT));
  }

  Task<int> Send(absl::Span<const iovec> vectors) override {
    int result = -EINTR;
    while (result == -EINTR || result == -EAGAIN) {
      msghdr message = MessageOf(vectors);
      result = co_await reactor_.SendMessage(socket_.get(), &message);
    }
    co_return result;
  }

  int TrySend(absl::Span<const iovec> vectors) override {
    const msghdr message = MessageOf(vectors);
    return ResultOf(sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL));
  }

  void CancelReceive() override {
    if (receiving_ != nullptr) reactor_.Cancel(*receiving_);
  }

  void Shutdown() override { shutdown(socket_.get(), SHUT_RDWR); }

  UniqueFd TakeSocket() override { return std::move(socket_); }

 private:
  Reactor& reactor_;
  UniqueFd socket_;
  Reactor::Operation* receiving_ = nullptr;
};

}  // namespace

std::unique_ptr<PlainTransport> MakePlainTransport(Reactor& reactor, UniqueFd socket) {
  return std::make_unique<SocketTransport>(reactor, std::move(socket));
}

}  // namespace berth::nbd
