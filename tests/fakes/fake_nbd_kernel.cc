#include "tests/fakes/fake_nbd_kernel.h"

#include <endian.h>
#include <fcntl.h>
#include <linux/nbd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "netlink/request_check.h"

namespace berth {
namespace {

using netlink::DeviceState;
using netlink::DeviceUse;

std::chrono::steady_clock::time_point After(absl::Duration at_most) {
  return std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(std::min(at_most, absl::Hours(1)));
}

nbd_request MakeRequest(uint32_t type, uint64_t offset, uint32_t length) {
  nbd_request request = {};
  request.magic = htobe32(NBD_REQUEST_MAGIC);
  request.type = htobe32(type);
  memcpy(&request.handle, "fakenbd0", sizeof(request.handle));
  request.from = htobe64(offset);
  request.len = htobe32(length);
  return request;
}

// Reads one sector as the kernel would. Waits until `deadline`.
absl::Status ReadSector(int fd, uint64_t offset, std::chrono::steady_clock::time_point deadline) {
  const nbd_request request = MakeRequest(NBD_CMD_READ, offset, 512);
  if (send(fd, &request, sizeof(request), MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof(request))) {
    return absl::InternalError(absl::StrCat("cannot send a read: ", strerror(errno)));
  }
  std::array<char, sizeof(nbd_reply) + 512> answer;
  size_t got = 0;
  while (got < answer.size()) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd ready = {fd, POLLIN, 0};
    if (left.count() <= 0 || poll(&ready, 1, static_cast<int>(left.count())) <= 0) {
      return absl::DeadlineExceededError("the last sector could not be read in time");
    }
    const ssize_t count = recv(fd, answer.data() + got, answer.size() - got, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (count <= 0) return absl::InternalError("reading the last sector: the server hung up");
    got += static_cast<size_t>(count);
    nbd_reply reply;
    if (got < sizeof(reply)) continue;
    memcpy(&reply, answer.data(), sizeof(reply));
    if (be32toh(reply.magic) != NBD_REPLY_MAGIC)
      return absl::InternalError("reply with a wrong magic number");
    if (reply.error != 0) {
      return absl::InternalError(absl::StrCat("reading the last sector: NBD error ", be32toh(reply.error)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

FakeNbdKernel::FakeNbdKernel(uint32_t devices) : wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  for (uint32_t index = 0; index < devices; ++index) devices_[index];
  watcher_ = std::thread([this] { WatchSockets(); });
}

FakeNbdKernel::~FakeNbdKernel() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  WakeWatcher();
  watcher_.join();
  for (auto& [index, device] : devices_) {
    for (int& fd : device.sockets) CloseSocketLocked(fd);
  }
  close(wake_fd_);
}

absl::StatusOr<uint32_t> FakeNbdKernel::Connect(const netlink::ConnectRequest& request) {
  Enter(Call::kConnect);
  if (absl::Status status = CheckConnect(request); !status.ok()) return status;
  std::lock_guard<std::mutex> lock(mutex_);
  if (absl::Status status = TakeFailureLocked(Call::kConnect); !status.ok()) return status;
  uint32_t index = 0;
  if (request.index) {
    index = *request.index;
    const Device& device = devices_[index];
    // An opener alone keeps the kernel from connecting a device.
    if (device.connected || device.IsHeld()) {
      return absl::FailedPreconditionError(absl::StrCat("/dev/nbd", index, " is in use"));
    }
  } else {
    while (devices_.contains(index) && (devices_[index].connected || devices_[index].IsHeld())) ++index;
  }
  Device& device = devices_[index];
  for (const int fd : request.sockets) device.sockets.push_back(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  device.connected = true;
  device.disconnecting = false;
  device.pid = getpid();
  device.configuration = request;
  device.configuration.index = index;
  device.configuration.sockets.clear();
  WakeWatcher();
  changed_.notify_all();
  if (!lost_answers_.empty()) {
    absl::Status status = std::move(lost_answers_.front());
    lost_answers_.pop_front();
    return status;
  }
  return index;
}

absl::Status FakeNbdKernel::Disconnect(uint32_t index) {
  Enter(Call::kDisconnect);
  std::lock_guard<std::mutex> lock(mutex_);
  if (absl::Status status = TakeFailureLocked(Call::kDisconnect); !status.ok()) return status;
  absl::StatusOr<Device*> device = FindLocked(index);
  if (!device.ok()) return device.status();
  if (!(*device)->connected) return absl::OkStatus();
  const nbd_request disconnect = MakeRequest(NBD_CMD_DISC, 0, 0);
  for (int& fd : (*device)->sockets) {
    if (fd < 0) continue;
    // A server that does not read gets no farewell, only the hang-up.
    (void)!send(fd, &disconnect, sizeof(disconnect), MSG_NOSIGNAL | MSG_DONTWAIT);
    CloseSocketLocked(fd);
  }
  (*device)->disconnecting = true;
  WakeWatcher();
  if (!(*device)->IsHeld()) LetGoLocked(**device);
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status FakeNbdKernel::Reconfigure(const netlink::ReconfigureRequest& request) {
  Enter(Call::kReconfigure);
  if (absl::Status status = CheckReconfigure(request); !status.ok()) return status;
  std::lock_guard<std::mutex> lock(mutex_);
  if (absl::Status status = TakeFailureLocked(Call::kReconfigure); !status.ok()) return status;
  absl::StatusOr<Device*> found = FindLocked(request.index);
  if (!found.ok()) return found.status();
  Device& device = **found;
  if (!device.connected || device.disconnecting) {
    return absl::FailedPreconditionError(absl::StrCat("/dev/nbd", request.index, " is not connected"));
  }
  if (!device.configuration.backend_identifier.empty() &&
      device.configuration.backend_identifier != request.backend_identifier) {
    return absl::FailedPreconditionError(absl::StrCat("/dev/nbd", request.index, " belongs to \"",
                                                      device.configuration.backend_identifier,
                                                      "\", not to \"", request.backend_identifier, "\""));
  }
  if (request.size_bytes) device.configuration.size_bytes = *request.size_bytes;
  if (request.block_size) device.configuration.block_size = *request.block_size;
  if (request.timeout) device.configuration.timeout = *request.timeout;
  if (request.dead_connection_timeout) {
    device.configuration.dead_connection_timeout = *request.dead_connection_timeout;
  }
  if (!request.sockets.empty() && reconfigures_to_drop_ > 0) {
    --reconfigures_to_drop_;
    return absl::OkStatus();
  }
  // A socket for which no dead one is left is dropped without a word.
  auto next = request.sockets.begin();
  for (int& fd : device.sockets) {
    if (fd < 0 && next != request.sockets.end()) fd = fcntl(*next++, F_DUPFD_CLOEXEC, 0);
  }
  WakeWatcher();
  changed_.notify_all();
  return absl::OkStatus();
}

absl::StatusOr<DeviceState> FakeNbdKernel::Inspect(uint32_t index) {
  Enter(Call::kInspect);
  std::lock_guard<std::mutex> lock(mutex_);
  if (absl::Status status = TakeFailureLocked(Call::kInspect); !status.ok()) return status;
  const auto found = devices_.find(index);
  if (found == devices_.end()) {
    DeviceState state;
    state.index = index;
    return state;
  }
  return StateLocked(index, found->second);
}

absl::StatusOr<DeviceUse> FakeNbdKernel::FindUse(uint32_t index) {
  Enter(Call::kFindUse);
  std::lock_guard<std::mutex> lock(mutex_);
  if (absl::Status status = TakeFailureLocked(Call::kFindUse); !status.ok()) return status;
  absl::StatusOr<Device*> device = FindLocked(index);
  if (!device.ok()) return device.status();
  DeviceUse use;
  use.claimed = !(*device)->mount_points.empty() || !(*device)->holders.empty();
  use.openers = (*device)->openers;
  if ((*device)->looks_left > 0) {
    --(*device)->looks_left;
    use.openers.push_back("udevd (pid 2)");
  }
  return use;
}

absl::Status FakeNbdKernel::WaitUntilUsable(uint32_t index, uint64_t size_bytes, absl::Duration at_most) {
  Enter(Call::kWaitUntilUsable);
  const auto deadline = After(at_most);
  std::unique_lock<std::mutex> lock(mutex_);
  if (absl::Status status = TakeFailureLocked(Call::kWaitUntilUsable); !status.ok()) return status;
  const bool sized = changed_.wait_until(lock, deadline, [&] {
    const auto found = devices_.find(index);
    return found != devices_.end() && found->second.connected &&
           found->second.configuration.size_bytes == size_bytes;
  });
  if (!sized) {
    return absl::DeadlineExceededError(
        absl::StrCat("/dev/nbd", index, " did not reach a size of ", size_bytes, " bytes"));
  }
  if (!probe_reads_) return absl::OkStatus();
  int fd = -1;
  for (const int socket : devices_[index].sockets) {
    if (socket < 0) continue;
    fd = fcntl(socket, F_DUPFD_CLOEXEC, 0);
    break;
  }
  lock.unlock();
  if (fd < 0) return absl::InternalError(absl::StrCat("/dev/nbd", index, ": all sockets are dead"));
  const absl::Status read = ReadSector(fd, size_bytes - 512, deadline);
  close(fd);
  if (read.ok()) return read;
  return absl::Status(read.code(), absl::StrCat("/dev/nbd", index, ": ", read.message()));
}

absl::Status FakeNbdKernel::WaitUntilFree(uint32_t index, absl::Duration at_most) {
  Enter(Call::kWaitUntilFree);
  const auto deadline = After(at_most);
  std::unique_lock<std::mutex> lock(mutex_);
  if (absl::Status status = TakeFailureLocked(Call::kWaitUntilFree); !status.ok()) return status;
  const auto found = devices_.find(index);
  if (found == devices_.end()) return absl::OkStatus();
  const Device& device = found->second;
  if (changed_.wait_until(lock, deadline, [&] { return !device.connected && device.holders.empty(); })) {
    return absl::OkStatus();
  }
  return absl::DeadlineExceededError(
      absl::StrCat("/dev/nbd", index, " is still held: ", absl::StrJoin(device.mount_points, ", "), " ",
                   absl::StrJoin(device.openers, ", ")));
}

absl::StatusOr<std::vector<uint32_t>> FakeNbdKernel::ListDevices() {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<uint32_t> indexes;
  for (const auto& [index, device] : devices_) indexes.push_back(index);
  return indexes;
}

absl::Status FakeNbdKernel::WatchDeadLinks(absl::AnyInvocable<void(uint32_t)> listener) {
  std::lock_guard<std::mutex> lock(mutex_);
  listener_ = std::make_shared<absl::AnyInvocable<void(uint32_t)>>(std::move(listener));
  return absl::OkStatus();
}

void FakeNbdKernel::FailNext(Call call, absl::Status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  failures_[call].push_back(std::move(status));
}

void FakeNbdKernel::Enter(Call call) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!blocking_.contains(call)) return;
  const auto entry = blocked_.insert(call);
  changed_.notify_all();
  changed_.wait(lock, [&] { return !blocking_.contains(call); });
  blocked_.erase(entry);
}

void FakeNbdKernel::Block(Call call) {
  std::lock_guard<std::mutex> lock(mutex_);
  blocking_.insert(call);
}

void FakeNbdKernel::Unblock(Call call) {
  std::lock_guard<std::mutex> lock(mutex_);
  blocking_.erase(call);
  changed_.notify_all();
}

bool FakeNbdKernel::WaitUntilBlocked(Call call) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_until(lock, After(absl::Minutes(1)), [&] { return blocked_.contains(call); });
}

void FakeNbdKernel::DropNextSockets(int count) {
  std::lock_guard<std::mutex> lock(mutex_);
  reconfigures_to_drop_ = count;
}

void FakeNbdKernel::LoseNextConnectAnswer(absl::Status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  lost_answers_.push_back(std::move(status));
}

void FakeNbdKernel::Hold(uint32_t index, std::string opener) {
  std::lock_guard<std::mutex> lock(mutex_);
  devices_[index].openers.push_back(std::move(opener));
}

void FakeNbdKernel::Release(uint32_t index) {
  std::lock_guard<std::mutex> lock(mutex_);
  Device& device = devices_[index];
  device.openers.clear();
  if (device.disconnecting && !device.IsHeld()) LetGoLocked(device);
  changed_.notify_all();
}

void FakeNbdKernel::HoldForLooks(uint32_t index, int looks) {
  std::lock_guard<std::mutex> lock(mutex_);
  devices_[index].looks_left = looks;
}

void FakeNbdKernel::SetMountPoints(uint32_t index, std::vector<std::string> mount_points) {
  std::lock_guard<std::mutex> lock(mutex_);
  Device& device = devices_[index];
  device.mount_points = std::move(mount_points);
  if (device.disconnecting && !device.IsHeld()) LetGoLocked(device);
  changed_.notify_all();
}

void FakeNbdKernel::SetHolders(uint32_t index, std::vector<std::string> holders) {
  std::lock_guard<std::mutex> lock(mutex_);
  Device& device = devices_[index];
  device.holders = std::move(holders);
  if (device.disconnecting && !device.IsHeld()) LetGoLocked(device);
  changed_.notify_all();
}

void FakeNbdKernel::SetPartitions(uint32_t index, std::vector<std::string> partitions) {
  std::lock_guard<std::mutex> lock(mutex_);
  devices_[index].partitions = std::move(partitions);
}

void FakeNbdKernel::ConnectForeign(uint32_t index, uint64_t size_bytes, std::string backend_identifier) {
  std::lock_guard<std::mutex> lock(mutex_);
  Device& device = devices_[index];
  device.connected = true;
  device.pid = 1;
  device.configuration = {};
  device.configuration.index = index;
  device.configuration.size_bytes = size_bytes;
  device.configuration.backend_identifier = std::move(backend_identifier);
  changed_.notify_all();
}

void FakeNbdKernel::KillSocket(uint32_t index, size_t socket) {
  std::lock_guard<std::mutex> lock(mutex_);
  Device& device = devices_[index];
  if (socket >= device.sockets.size() || device.sockets[socket] < 0) return;
  CloseSocketLocked(device.sockets[socket]);
  dead_links_.push_back(index);
  WakeWatcher();
}

void FakeNbdKernel::ReportDeadLink(uint32_t index) {
  std::lock_guard<std::mutex> lock(mutex_);
  dead_links_.push_back(index);
  WakeWatcher();
}

void FakeNbdKernel::SetProbeReads(bool on) {
  std::lock_guard<std::mutex> lock(mutex_);
  probe_reads_ = on;
}

size_t FakeNbdKernel::ConnectedDevices() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<size_t>(std::count_if(devices_.begin(), devices_.end(),
                                           [](const auto& entry) { return entry.second.connected; }));
}

size_t FakeNbdKernel::LiveSockets(uint32_t index) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = devices_.find(index);
  if (found == devices_.end()) return 0;
  const std::vector<int>& sockets = found->second.sockets;
  return static_cast<size_t>(std::count_if(sockets.begin(), sockets.end(), [](int fd) { return fd >= 0; }));
}

int FakeNbdKernel::KernelSocket(uint32_t index, size_t socket) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = devices_.find(index);
  if (found == devices_.end() || socket >= found->second.sockets.size()) return -1;
  return found->second.sockets[socket];
}

int FakeNbdKernel::DuplicateKernelSocket(uint32_t index, size_t socket) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = devices_.find(index);
  if (found == devices_.end() || socket >= found->second.sockets.size()) return -1;
  return fcntl(found->second.sockets[socket], F_DUPFD_CLOEXEC, 0);
}

netlink::ConnectRequest FakeNbdKernel::ConnectedWith(uint32_t index) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = devices_.find(index);
  return found == devices_.end() ? netlink::ConnectRequest() : found->second.configuration;
}

absl::Status FakeNbdKernel::TakeFailureLocked(Call call) {
  std::deque<absl::Status>& failures = failures_[call];
  if (failures.empty()) return absl::OkStatus();
  absl::Status status = std::move(failures.front());
  failures.pop_front();
  return status;
}

absl::StatusOr<FakeNbdKernel::Device*> FakeNbdKernel::FindLocked(uint32_t index) {
  const auto found = devices_.find(index);
  if (found == devices_.end()) return absl::NotFoundError(absl::StrCat("there is no /dev/nbd", index));
  return &found->second;
}

void FakeNbdKernel::LetGoLocked(Device& device) {
  device.connected = false;
  device.disconnecting = false;
  device.pid = 0;
  device.configuration = {};
  device.sockets.clear();
  device.partitions.clear();
}

void FakeNbdKernel::CloseSocketLocked(int& fd) {
  if (fd < 0) return;
  // The other end must see the hang-up even while a copy of the descriptor is open elsewhere in the process.
  shutdown(fd, SHUT_RDWR);
  close(fd);
  fd = -1;
}

DeviceState FakeNbdKernel::StateLocked(uint32_t index, const Device& device) const {
  DeviceState state;
  state.index = index;
  state.exists = true;
  if (device.connected) {
    // A disconnected device that is still held loses its pid last, with the rest.
    state.pid = device.pid;
    state.size_bytes = device.configuration.size_bytes;
    state.backend_identifier = device.configuration.backend_identifier;
    state.read_only = (device.configuration.server_flags & NBD_FLAG_READ_ONLY) != 0;
    state.partitions = device.partitions;
  }
  state.holders = device.holders;
  state.mount_points = device.mount_points;
  return state;
}

void FakeNbdKernel::WatchSockets() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    if (!dead_links_.empty() && listener_ != nullptr) {
      const uint32_t index = dead_links_.front();
      dead_links_.pop_front();
      const auto listener = listener_;
      lock.unlock();
      (*listener)(index);
      lock.lock();
      continue;
    }
    // POLLRDHUP alone: what the server says belongs to whoever reads the socket.
    std::vector<pollfd> polled = {{wake_fd_, POLLIN, 0}};
    std::vector<std::pair<uint32_t, size_t>> sources = {{0, 0}};
    for (const auto& [index, device] : devices_) {
      for (size_t i = 0; i < device.sockets.size(); ++i) {
        if (device.sockets[i] < 0) continue;
        polled.push_back({device.sockets[i], POLLRDHUP, 0});
        sources.emplace_back(index, i);
      }
    }
    lock.unlock();
    poll(polled.data(), polled.size(), -1);
    uint64_t wakes = 0;
    (void)!read(wake_fd_, &wakes, sizeof(wakes));
    lock.lock();
    for (size_t i = 1; i < polled.size(); ++i) {
      if (polled[i].revents == 0) continue;
      const auto [index, socket] = sources[i];
      Device& device = devices_[index];
      // While poll() ran without the lock the socket may have been closed, and its number taken by another.
      if (socket >= device.sockets.size() || device.sockets[socket] != polled[i].fd) continue;
      pollfd again = {polled[i].fd, POLLRDHUP, 0};
      if (poll(&again, 1, 0) <= 0) continue;
      CloseSocketLocked(device.sockets[socket]);
      dead_links_.push_back(index);
    }
  }
}

void FakeNbdKernel::WakeWatcher() {
  const uint64_t one = 1;
  (void)!write(wake_fd_, &one, sizeof(one));
}

}  // namespace berth
