#include "control/device_sessions.h"

#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/status/status.h"

namespace berth::control {
namespace {

// Two to four MiB double the speed of large reads; the kernel caps it at net.core.wmem_max where the process
// may not go beyond.
constexpr int kSocketBufferBytes = 4 << 20;

struct SocketPair {
  UniqueFd server;
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
  SocketPair pair{UniqueFd(fds[0]), UniqueFd(fds[1])};
  EnlargeBuffers(pair.server.get());
  EnlargeBuffers(pair.kernel.get());
  return pair;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceSessions>> DeviceSessions::Start(
    ReactorPool& reactors, std::shared_ptr<const nbd::Export> served, size_t count,
    const nbd::SessionOptions& options, absl::AnyInvocable<void()> on_all_ended) {
  std::vector<SocketPair> pairs;
  for (size_t i = 0; i < count; ++i) {
    absl::StatusOr<SocketPair> pair = MakeSocketPair();
    if (!pair.ok()) return pair.status();
    pairs.push_back(*std::move(pair));
  }
  std::unique_ptr<DeviceSessions> device(new DeviceSessions);
  device->count_ = std::make_shared<Count>();
  device->count_->on_all_ended = std::move(on_all_ended);
  {
    MutexLock lock(&device->count_->mutex);
    device->count_->running = count;
  }
  for (SocketPair& pair : pairs) {
    device->kernel_ends_.push_back(std::move(pair.kernel));
    device->sessions_.push_back(nbd::StartKernelSession(reactors.Next(), std::move(pair.server), served,
                                                        options,
                                                        [counted = device->count_] { OneEnded(counted); }));
  }
  return device;
}

void DeviceSessions::OneEnded(const std::shared_ptr<Count>& count) {
  {
    MutexLock lock(&count->mutex);
    if (--count->running > 0) return;
  }
  count->changed.SignalAll();
  if (count->on_all_ended) count->on_all_ended();
}

std::vector<int> DeviceSessions::kernel_ends() const {
  std::vector<int> fds;
  for (const UniqueFd& fd : kernel_ends_) fds.push_back(fd.get());
  return fds;
}

size_t DeviceSessions::running() const {
  MutexLock lock(&count_->mutex);
  return count_->running;
}

void DeviceSessions::Stop() {
  for (const std::shared_ptr<nbd::Session>& session : sessions_) session->Stop();
}

bool DeviceSessions::WaitUntilEnded(absl::Time deadline) {
  MutexLock lock(&count_->mutex);
  while (count_->running > 0) {
    if (!count_->changed.WaitUntil(&count_->mutex, deadline) && count_->running > 0) return false;
  }
  return true;
}

}  // namespace berth::control
