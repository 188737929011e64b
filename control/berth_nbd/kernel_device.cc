#include "control/berth_nbd/kernel_device.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "image/io/unique_fd.h"
#include "nbd/capabilities.h"
#include "nbd/wire.h"

namespace berth::control {
namespace {

constexpr uint32_t kBlockSize = 512;
constexpr uint32_t kUsefulConnections = 4;
// The kernel takes a connection for dead that keeps a request so long.
constexpr absl::Duration kRequestTimeout = absl::Seconds(120);
// Says to Detach() which process to wait for.
constexpr char kBackendPrefix[] = "berth-nbd:";
constexpr absl::Duration kKernelTimeout = absl::Seconds(30);

std::string DevicePath(uint32_t index) { return absl::StrCat("/dev/nbd", index); }

std::optional<uint32_t> IndexOf(absl::string_view path) {
  uint32_t index;
  if (!absl::ConsumePrefix(&path, "/dev/nbd") || !absl::SimpleAtoi(path, &index)) return std::nullopt;
  return index;
}

absl::StatusOr<uint32_t> ConnectionCount(uint64_t flags, uint32_t wanted) {
  if ((flags & nbd::kFlagCanMultiConn) == 0) {
    if (wanted <= 1) return 1;
    return absl::FailedPreconditionError(absl::StrCat(
        "--connections is '", wanted, "'; this image can be used over one connection at a time"));
  }
  if (wanted != 0) return wanted;
  return std::clamp(std::thread::hardware_concurrency(), 1u, kUsefulConnections);
}

// The berth-nbd behind a device, where it is one, and in this pid namespace.
UniqueFd ServerOf(const netlink::DeviceState& state) {
  absl::string_view text = state.backend_identifier;
  pid_t pid;
  if (!absl::ConsumePrefix(&text, kBackendPrefix) || !absl::SimpleAtoi(text, &pid)) return UniqueFd();
  std::string name;
  std::ifstream(absl::StrCat("/proc/", pid, "/comm")) >> name;
  if (name != "berth-nbd" && name != "qemu-nbd") return UniqueFd();
  return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
}

// Whoever detached a device may use its image at once: it has been closed.
absl::Status WaitForEnd(const UniqueFd& server, const std::string& device) {
  if (!server) return absl::OkStatus();
  pollfd event = {server.get(), POLLIN, 0};
  if (poll(&event, 1, static_cast<int>(absl::ToInt64Milliseconds(kKernelTimeout))) == 1)
    return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat(
      "-d: ", device, " is free, and its server has not closed the image yet; look at its storage"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<KernelDevice>> KernelDevice::Attach(ReactorPool& reactors,
                                                                   netlink::NbdKernel& kernel,
                                                                   std::shared_ptr<const nbd::Export> served,
                                                                   const KernelDeviceOptions& options,
                                                                   absl::AnyInvocable<void()> on_end) {
  netlink::ConnectRequest request;
  if (options.device != "auto") request.index = IndexOf(options.device);
  request.block_size = kBlockSize;
  request.size_bytes = served->device->size() / kBlockSize * kBlockSize;
  if (request.size_bytes == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("-c: the image has ", served->device->size(), " bytes, which is less than one sector"));
  }
  request.server_flags =
      nbd::TransmissionFlags(*served, nbd::ReplyStyle::kSimple) & ~uint64_t{nbd::kFlagSendResize};
  const absl::StatusOr<uint32_t> connections = ConnectionCount(request.server_flags, options.connections);
  if (!connections.ok()) return connections.status();
  request.timeout = kRequestTimeout;
  request.backend_identifier = absl::StrCat(kBackendPrefix, getpid());
  nbd::SessionOptions session;
  session.refuse_while_stopping = false;
  auto end = std::make_shared<absl::AnyInvocable<void()>>(std::move(on_end));
  auto sessions =
      std::make_unique<DeviceSessions>(reactors, std::move(served), session, [end](size_t connections_left) {
        if (connections_left == 0 && *end) (*end)();
      });
  if (absl::Status status = sessions->Add(*connections); !status.ok()) return status;
  std::unique_ptr<KernelDevice> device(new KernelDevice(kernel, std::move(sessions)));
  request.sockets = device->sessions_->kernel_ends();
  absl::StatusOr<uint32_t> index = kernel.Connect(request);
  device->sessions_->CloseKernelEnds();
  if (!index.ok()) {
    return absl::Status(index.status().code(),
                        absl::StrCat("-c is '", options.device, "': ", index.status().message()));
  }
  device->index_ = *index;
  device->connected_ = true;
  if (absl::Status status = kernel.WaitUntilUsable(*index, request.size_bytes, kKernelTimeout);
      !status.ok()) {
    return status;
  }
  return device;
}

KernelDevice::~KernelDevice() { End().IgnoreError(); }

std::string KernelDevice::path() const { return DevicePath(index_); }

absl::Status KernelDevice::End() {
  absl::Status status;
  if (std::exchange(connected_, false) && sessions_->running() > 0) status = kernel_.Disconnect(index_);
  if (sessions_ == nullptr) return status;
  sessions_->CloseKernelEnds();
  sessions_->Stop();
  if (sessions_->WaitUntilEnded(absl::Now() + kKernelTimeout)) {
    sessions_.reset();
    return status;
  }
  return absl::DeadlineExceededError(
      absl::StrCat(sessions_->running(), " connections of ", path(),
                   " did not end: their requests are stuck in the image's storage"));
}

absl::Status Detach(netlink::NbdKernel& kernel, const std::string& device) {
  std::error_code error;
  const std::filesystem::path resolved = std::filesystem::weakly_canonical(device, error);
  const std::optional<uint32_t> index = IndexOf(error ? device : resolved.string());
  if (!index.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("-d: '", device.substr(0, 200), "' is not /dev/nbdN"));
  }
  absl::StatusOr<netlink::DeviceState> state = kernel.Inspect(*index);
  if (!state.ok()) return state.status();
  const std::string path = DevicePath(*index);
  if (!state->exists) return absl::NotFoundError(absl::StrCat("-d: there is no device ", path));
  if (state->IsFree()) return absl::OutOfRangeError(absl::StrCat("-d: nothing is connected to ", path));
  if (!state->mount_points.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "-d: ", path, " is mounted at ", absl::StrJoin(state->mount_points, ", "), "; unmount it first"));
  }
  if (!state->holders.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "-d: ", path, " is held by ", absl::StrJoin(state->holders, ", "), "; take them away first"));
  }
  const UniqueFd server = ServerOf(*state);
  if (absl::Status status = kernel.Disconnect(*index); !status.ok()) return status;
  if (absl::Status status = kernel.WaitUntilFree(*index, kKernelTimeout); !status.ok()) return status;
  return WaitForEnd(server, path);
}

}  // namespace berth::control
