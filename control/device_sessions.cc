#include "control/device_sessions.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <iterator>
#include <utility>

#include "absl/status/statusor.h"

namespace berth::control {
namespace {

// Two to four MiB double the speed of large reads; the kernel caps it at net.core.wmem_max where the process
// may not go beyond.
constexpr int kSocketBufferBytes = 4 << 20;

struct SocketPair {
  UniqueFd server;
  UniqueFd watched;  // A copy of it.
  UniqueFd kernel;
};

void EnlargeBuffers(int socket) {
  // Root may pass the system's limit. That a buffer stays small costs speed and nothing else.
  for (const auto& [forced, plain] : {std::pair(SO_SNDBUFFORCE, SO_SNDBUF), {SO_RCVBUFFORCE, SO_RCVBUF}}) {
    if (setsockopt(socket, SOL_SOCKET, forced, &kSocketBufferBytes, sizeof(kSocketBufferBytes)) != 0) {
      setsockopt(socket, SOL_SOCKET, plain, &kSocketBufferBytes, sizeof(kSocketBufferBytes));
    }
  }
}

// Closed on exec, both: a copy that leaks into a child would hide this process's death from the kernel.
absl::StatusOr<SocketPair> MakeSocketPair() {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    return absl::ErrnoToStatus(errno, "cannot make a socket pair for the kernel");
  }
  SocketPair pair{UniqueFd(fds[0]), UniqueFd(fcntl(fds[0], F_DUPFD_CLOEXEC, 0)), UniqueFd(fds[1])};
  if (!pair.watched) return absl::ErrnoToStatus(errno, "cannot duplicate a socket for the kernel");
  EnlargeBuffers(pair.server.get());
  EnlargeBuffers(pair.kernel.get());
  return pair;
}

// Whether somebody still holds the other end of `socket`.
bool HasPeer(int socket) {
  pollfd polled = {.fd = socket, .events = POLLRDHUP, .revents = 0};
  return poll(&polled, 1, 0) == 0;
}

}  // namespace

DeviceSessions::DeviceSessions(ReactorPool& reactors, std::shared_ptr<const nbd::Export> served,
                               const nbd::SessionOptions& options,
                               absl::AnyInvocable<void(size_t live) const> on_lost)
    : reactors_(reactors), served_(std::move(served)), options_(options) {
  numbers_->on_lost = std::move(on_lost);
}

absl::Status DeviceSessions::Add(size_t count) {
  std::vector<SocketPair> pairs;
  for (size_t i = 0; i < count; ++i) {
    absl::StatusOr<SocketPair> pair = MakeSocketPair();
    if (!pair.ok()) return pair.status();
    pairs.push_back(*std::move(pair));
  }
  MutexLock lock(&mutex_);
  std::set<uint64_t> running;
  {
    MutexLock numbers_lock(&numbers_->mutex);
    running = numbers_->running;
  }
  for (auto session = sessions_.begin(); session != sessions_.end();) {
    session = running.contains(session->first) ? std::next(session) : sessions_.erase(session);
  }
  for (SocketPair& pair : pairs) {
    const uint64_t number = ++next_number_;
    {
      MutexLock numbers_lock(&numbers_->mutex);
      numbers_->running.insert(number);
    }
    offers_.push_back({number, std::move(pair.kernel), std::move(pair.watched)});
    sessions_[number] = nbd::StartKernelSession(reactors_.Next(), std::move(pair.server), served_, options_,
                                                [numbers = numbers_, number] { OneEnded(numbers, number); });
  }
  return absl::OkStatus();
}

void DeviceSessions::OneEnded(const std::shared_ptr<Numbers>& numbers, uint64_t number) {
  bool lost = false;
  size_t live = 0;
  {
    MutexLock lock(&numbers->mutex);
    numbers->running.erase(number);
    lost = numbers->live.erase(number) > 0;
    live = numbers->live.size();
  }
  numbers->changed.SignalAll();
  if (lost) numbers->on_lost(live);
}

std::vector<int> DeviceSessions::kernel_ends() const {
  std::vector<int> fds;
  for (const Offer& offer : offers_) fds.push_back(offer.kernel.get());
  return fds;
}

size_t DeviceSessions::CloseKernelEnds() {
  for (Offer& offer : offers_) offer.kernel.Reset();
  size_t taken = 0;
  {
    MutexLock lock(&numbers_->mutex);
    for (const Offer& offer : offers_) {
      if (!HasPeer(offer.server.get()) || !numbers_->running.contains(offer.number)) continue;
      numbers_->live.insert(offer.number);
      ++taken;
    }
  }
  offers_.clear();
  return taken;
}

size_t DeviceSessions::live() const {
  MutexLock lock(&numbers_->mutex);
  return numbers_->live.size();
}

size_t DeviceSessions::running() const {
  MutexLock lock(&numbers_->mutex);
  return numbers_->running.size();
}

void DeviceSessions::Stop() {
  MutexLock lock(&mutex_);
  for (const auto& [number, session] : sessions_) session->Stop();
}

bool DeviceSessions::WaitUntilEnded(absl::Time deadline) {
  MutexLock lock(&numbers_->mutex);
  while (!numbers_->running.empty()) {
    if (!numbers_->changed.WaitUntil(&numbers_->mutex, deadline) && !numbers_->running.empty()) return false;
  }
  return true;
}

bool DeviceSessions::WaitUntilSettled(absl::Time deadline) {
  MutexLock lock(&numbers_->mutex);
  while (numbers_->running.size() > numbers_->live.size()) {
    if (!numbers_->changed.WaitUntil(&numbers_->mutex, deadline) &&
        numbers_->running.size() > numbers_->live.size()) {
      return false;
    }
  }
  return true;
}

}  // namespace berth::control
