#include "netlink/libnl_nbd_kernel.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "netlink/child_call.h"
#include "netlink/device_access.h"
#include "netlink/genl_socket.h"
#include "netlink/module_loader.h"
#include "netlink/request_check.h"

namespace berth::netlink {
namespace {

using Clock = std::chrono::steady_clock;

// Calls on device nodes that may hang at a time: a thread each.
constexpr int kMaxOpenings = 64;

std::string DevicePath(uint32_t index) { return absl::StrCat("/dev/nbd", index); }

absl::Status WithContext(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

constexpr absl::string_view kNoModule =
    "this kernel has no nbd: load it with `modprobe nbd` as root; where there is no such module, install the "
    "kernel "
    "package that has it or a kernel with CONFIG_BLK_DEV_NBD";

// Duplicates of the caller's sockets, so that a request that hangs still means the same ones when it goes on.
// Closed with Close(), at the latest with the object.
class OwnedSockets {
 public:
  OwnedSockets() = default;
  ~OwnedSockets() { Close(); }
  OwnedSockets(const OwnedSockets&) = delete;
  OwnedSockets& operator=(const OwnedSockets&) = delete;

  absl::Status Add(const std::vector<int>& sockets) {
    for (const int fd : sockets) {
      const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
      if (copy < 0)
        return absl::ResourceExhaustedError(absl::StrCat("cannot duplicate a socket: ", strerror(errno)));
      fds_.push_back(copy);
    }
    return absl::OkStatus();
  }
  void Close() {
    for (const int fd : fds_) close(fd);
    fds_.clear();
  }
  const std::vector<int>& get() const { return fds_; }

 private:
  std::vector<int> fds_;
};

// What an errno of the kernel's means for a request about `device`.
absl::Status KernelError(const KernelAnswer& answer, absl::string_view request, absl::string_view device) {
  const std::string what = absl::StrCat(request, " ", device, ": ", strerror(answer.error),
                                        answer.explanation.empty() ? "" : ": ", answer.explanation);
  switch (answer.error) {
    case 0:
      return absl::OkStatus();
    case EPERM:
    case EACCES:
      return absl::PermissionDeniedError(absl::StrCat(
          what,
          "; it takes CAP_SYS_ADMIN in the initial user namespace, and kernels before 6.2 want the initial "
          "network namespace too"));
    case EBUSY:
    case EEXIST:
      return absl::FailedPreconditionError(absl::StrCat(what, "; the device is taken"));
    case EINVAL:
      return absl::InvalidArgumentError(absl::StrCat(what,
                                                     "; the kernel's log says why (dmesg): a socket that is "
                                                     "neither TCP nor Unix stream, or a device number "
                                                     "beyond what the module's max_part leaves room for"));
    case ENOMEM:
    case ENOSPC:
      return absl::ResourceExhaustedError(what);
    case ENOENT:
    case ENODEV:
      return absl::FailedPreconditionError(absl::StrCat(what, "; the nbd module is being unloaded"));
    default:
      return absl::InternalError(what);
  }
}

absl::StatusOr<int> Resolve(GenlSocket& socket) {
  absl::StatusOr<int> family = socket.ResolveFamily();
  if (absl::IsNotFound(family.status())) return absl::FailedPreconditionError(kNoModule);
  return family;
}

// Sends one request on a socket of its own: whatever became of an earlier one, no answer of its can be
// mistaken.
absl::StatusOr<KernelAnswer> Send(const std::function<NlMessage(int family)>& make) {
  absl::StatusOr<GenlSocket> socket = GenlSocket::Open();
  if (!socket.ok()) return socket.status();
  absl::StatusOr<int> family = Resolve(*socket);
  if (!family.ok()) return family.status();
  const NlMessage message = make(*family);
  return socket->Exchange(message.get());
}

absl::Status SendDisconnect(uint32_t index) {
  absl::StatusOr<KernelAnswer> answer =
      Send([index](int family) { return DisconnectMessage(family, index); });
  if (!answer.ok()) return WithContext(answer.status(), absl::StrCat("disconnect ", DevicePath(index)));
  return KernelError(*answer, "disconnect", DevicePath(index));
}

// Calls `done` until it gives something else than nothing or `deadline` has passed, more and more rarely.
template <typename Done>
auto Poll(Clock::time_point deadline, Done done) -> decltype(done()) {
  auto pause = std::chrono::microseconds(100);
  while (true) {
    auto result = done();
    if (result) return result;
    const auto now = Clock::now();
    if (now >= deadline) return result;
    std::this_thread::sleep_for(std::min<Clock::duration>(pause, deadline - now));
    pause = std::min(pause * 3 / 2, std::chrono::microseconds(20000));
  }
}

Clock::time_point After(absl::Duration at_most) {
  return Clock::now() +
         absl::ToChronoMilliseconds(std::clamp(at_most, absl::ZeroDuration(), absl::Hours(24)));
}

absl::Duration Until(Clock::time_point deadline) {
  return std::max(absl::FromChrono(deadline - Clock::now()), absl::ZeroDuration());
}

}  // namespace

std::unique_ptr<LibnlNbdKernel> LibnlNbdKernel::Create(LibnlNbdKernelOptions options) {
  return std::unique_ptr<LibnlNbdKernel>(new LibnlNbdKernel(std::move(options)));
}

absl::StatusOr<uint32_t> LibnlNbdKernel::Connect(const ConnectRequest& request) {
  if (absl::Status status = CheckConnect(request); !status.ok()) return status;
  if (absl::Status status = EnsureModule(); !status.ok()) return status;
  if (absl::Status status = EnsureWatch(); !status.ok()) return status;

  auto sockets = std::make_shared<OwnedSockets>();
  if (absl::Status status = sockets->Add(request.sockets); !status.ok()) return status;
  auto connected = std::make_shared<std::optional<uint32_t>>();
  auto busy = std::make_shared<bool>(false);
  const std::string device = request.index ? DevicePath(*request.index) : "a free nbd device";
  absl::Status status = requests_.Run(
      absl::StrCat("connect ", device), options_.call_timeout,
      [request = ConnectRequest(request), sockets, connected, busy, device]() mutable -> absl::Status {
        request.sockets = sockets->get();
        absl::StatusOr<KernelAnswer> answer =
            Send([&](int family) { return ConnectMessage(family, request); });
        sockets->Close();
        if (!answer.ok()) return WithContext(answer.status(), absl::StrCat("connect ", device));
        *busy = answer->error == EBUSY;
        if (answer->error != 0) return KernelError(*answer, "connect", device);
        *connected = request.index ? request.index : answer->index;
        if (!*connected) return absl::InternalError("the kernel connected a device and did not say which");
        return absl::OkStatus();
      },
      // Nobody waits for the device any more.
      [connected] { (void)SendDisconnect(**connected); });
  if (!status.ok()) {
    // `busy` is set only by a call that returned.
    if (absl::IsFailedPrecondition(status) && request.index && *busy) {
      return absl::FailedPreconditionError(DescribeTaken(*request.index));
    }
    return status;
  }
  return **connected;
}

absl::Status LibnlNbdKernel::Disconnect(uint32_t index) {
  const DeviceState state = InspectDisk(options_.paths, index);
  if (!state.exists) return absl::NotFoundError(absl::StrCat("there is no ", DevicePath(index)));
  if (state.pid && !state.partitions.empty()) {
    // The kernel would keep them on a disk of no size. One that is in use stays; what matters is the disk.
    (void)RunOpening(absl::StrCat("drop partitions of ", DevicePath(index)), options_.open_timeout,
                     [paths = options_.paths, nodes = ListNodes(options_.paths, index)] {
                       return nodes.empty() ? absl::OkStatus() : DropPartitions(paths, nodes);
                     });
  }
  return requests_.Run(absl::StrCat("disconnect ", DevicePath(index)), options_.call_timeout,
                       [index] { return SendDisconnect(index); });
}

absl::Status LibnlNbdKernel::Reconfigure(const ReconfigureRequest& request) {
  if (absl::Status status = CheckReconfigure(request); !status.ok()) return status;
  const std::string device = DevicePath(request.index);
  // The kernel says EINVAL to all of these.
  const DeviceState state = InspectDisk(options_.paths, request.index);
  if (!state.exists) return absl::NotFoundError(absl::StrCat("there is no ", device));
  if (!state.pid) return absl::FailedPreconditionError(absl::StrCat(device, " is not connected"));
  if (!state.backend_identifier.empty() && state.backend_identifier != request.backend_identifier) {
    return absl::FailedPreconditionError(absl::StrCat(device, " belongs to \"", state.backend_identifier,
                                                      "\", not to \"", request.backend_identifier, "\""));
  }
  if (absl::Status status = EnsureWatch(); !status.ok()) return status;

  auto sockets = std::make_shared<OwnedSockets>();
  if (absl::Status status = sockets->Add(request.sockets); !status.ok()) return status;
  return requests_.Run(absl::StrCat("reconfigure ", device), options_.call_timeout,
                       [request = ReconfigureRequest(request), sockets, device]() mutable -> absl::Status {
                         request.sockets = sockets->get();
                         absl::StatusOr<KernelAnswer> answer =
                             Send([&](int family) { return ReconfigureMessage(family, request); });
                         sockets->Close();
                         if (!answer.ok())
                           return WithContext(answer.status(), absl::StrCat("reconfigure ", device));
                         return KernelError(*answer, "reconfigure", device);
                       });
}

absl::StatusOr<DeviceState> LibnlNbdKernel::Inspect(uint32_t index) {
  DeviceState state = InspectDisk(options_.paths, index);
  // Nothing of no size is mounted, and the table of mounts may be long.
  if (!state.exists || state.size_bytes == 0) return state;
  const std::vector<BlockNode> nodes = ListNodes(options_.paths, index);
  absl::StatusOr<std::vector<std::string>> mount_points = FindMountPoints(options_.paths, nodes);
  if (!mount_points.ok()) return mount_points.status();
  state.mount_points = *std::move(mount_points);
  for (std::string& loop : FindLoops(options_.paths, nodes)) state.holders.push_back(std::move(loop));
  return state;
}

absl::StatusOr<DeviceUse> LibnlNbdKernel::FindUse(uint32_t index) {
  const DeviceState state = InspectDisk(options_.paths, index);
  DeviceUse use;
  // An open would give a free device a configuration, which keeps others from connecting it.
  if (state.exists && state.IsFree()) return use;
  absl::StatusOr<BlockNode> disk = FindDisk(index);
  if (!disk.ok()) return disk.status();
  use.openers = FindOpeners(options_.paths, ListNodes(options_.paths, index));
  const absl::Status status =
      RunOpening(absl::StrCat("open ", DevicePath(index)), options_.open_timeout,
                 [paths = options_.paths, disk = *disk]() -> absl::Status {
                   const absl::StatusOr<bool> claimed = IsClaimed(paths, disk);
                   if (!claimed.ok()) return claimed.status();
                   return *claimed ? absl::AlreadyExistsError("it is claimed") : absl::OkStatus();
                 });
  use.claimed = absl::IsAlreadyExists(status);
  if (!status.ok() && !use.claimed) return status;
  return use;
}

absl::Status LibnlNbdKernel::WaitUntilUsable(uint32_t index, uint64_t size_bytes, absl::Duration at_most) {
  const Clock::time_point deadline = After(at_most);
  const SystemPaths& paths = options_.paths;
  DeviceState state;
  const bool sized = Poll(deadline, [&] {
    state = InspectDisk(paths, index);
    return state.pid.has_value() && state.size_bytes == size_bytes;
  });
  if (!state.exists) return absl::NotFoundError(absl::StrCat("there is no ", DevicePath(index)));
  if (!state.pid) return absl::FailedPreconditionError(absl::StrCat(DevicePath(index), " is not connected"));
  if (!sized) {
    return absl::DeadlineExceededError(absl::StrCat(DevicePath(index), " has ", state.size_bytes,
                                                    " bytes instead of ", size_bytes, " after ",
                                                    absl::FormatDuration(at_most)));
  }
  absl::StatusOr<BlockNode> disk = FindDisk(index);
  if (!disk.ok()) return disk.status();
  absl::Status node;
  (void)Poll(deadline, [&] {
    node = CheckNode(paths, *disk);
    return !absl::IsNotFound(node);
  });
  if (!node.ok()) return absl::FailedPreconditionError(node.message());
  absl::Status read =
      RunOpening(absl::StrCat("read ", DevicePath(index)), Until(deadline),
                 [paths, disk = *disk, size_bytes] { return ReadLastBlock(paths, disk, size_bytes); });
  if (!read.ok()) return read;
  // The open has scanned the table: the partitions are there, their nodes a moment later.
  for (const BlockNode& partition : ListNodes(paths, index)) {
    (void)Poll(deadline, [&] {
      node = CheckNode(paths, partition);
      return !absl::IsNotFound(node);
    });
    if (!node.ok()) return absl::FailedPreconditionError(node.message());
  }
  return absl::OkStatus();
}

absl::Status LibnlNbdKernel::WaitUntilFree(uint32_t index, absl::Duration at_most) {
  DeviceState state;
  const bool free = Poll(After(at_most), [&] {
    state = InspectDisk(options_.paths, index);
    return state.IsFree();
  });
  if (free) return absl::OkStatus();
  const std::vector<BlockNode> nodes = ListNodes(options_.paths, index);
  std::vector<std::string> reasons = FindOpeners(options_.paths, nodes);
  for (std::string& reason : reasons) reason = absl::StrCat("open in ", reason);
  for (std::string& loop : FindLoops(options_.paths, nodes)) state.holders.push_back(std::move(loop));
  if (!state.holders.empty()) {
    reasons.push_back(absl::StrCat("below ", absl::StrJoin(state.holders, ", ")));
  }
  if (absl::StatusOr<std::vector<std::string>> mounts = FindMountPoints(options_.paths, nodes); mounts.ok()) {
    for (const std::string& mount : *mounts) {
      reasons.push_back(mount == "swap" ? "used as swap" : absl::StrCat("mounted on ", mount));
    }
  }
  if (reasons.empty()) reasons.push_back("by nobody that /proc shows: look into other containers");
  return absl::DeadlineExceededError(absl::StrCat(DevicePath(index), " is still held after ",
                                                  absl::FormatDuration(at_most), ": ",
                                                  absl::StrJoin(reasons, ", ")));
}

absl::StatusOr<std::vector<uint32_t>> LibnlNbdKernel::ListDevices() { return ListDisks(options_.paths); }

absl::Status LibnlNbdKernel::WatchDeadLinks(absl::AnyInvocable<void(uint32_t)> listener) {
  {
    std::lock_guard<std::mutex> lock(watch_mutex_);
    if (watch_ != nullptr) return absl::FailedPreconditionError("dead links have a listener already");
    watch_ = std::make_unique<DeadLinkWatch>(std::move(listener));
  }
  // Without nbd there is nothing to hear before the first Connect().
  return HasNbdModule(options_.paths) ? EnsureWatch() : absl::OkStatus();
}

absl::Status LibnlNbdKernel::EnsureModule() {
  std::lock_guard<std::mutex> lock(module_mutex_);
  if (HasNbdModule(options_.paths)) return absl::OkStatus();
  if (!options_.load_module) return absl::FailedPreconditionError(kNoModule);
  const absl::Status loaded = LoadNbdModule(options_.modprobe, options_.module_timeout);
  if (HasNbdModule(options_.paths)) return absl::OkStatus();
  // Asking for the family makes kernels that know its alias load the module themselves, also from a
  // container.
  const absl::Status resolved = requests_.Run("load nbd", options_.call_timeout, []() -> absl::Status {
    absl::StatusOr<GenlSocket> socket = GenlSocket::Open();
    if (!socket.ok()) return socket.status();
    return Resolve(*socket).status();
  });
  if (resolved.ok() || loaded.ok()) return resolved;
  return absl::Status(resolved.code(), absl::StrCat(resolved.message(), " (tried: ", loaded.message(), ")"));
}

absl::Status LibnlNbdKernel::EnsureWatch() {
  std::lock_guard<std::mutex> lock(watch_mutex_);
  if (watch_ == nullptr) return absl::OkStatus();
  struct Joined {
    std::optional<GenlSocket> socket;
    int family = -1;
  };
  auto joined = std::make_shared<Joined>();
  const bool running = watch_->IsRunning();
  // A module that was unloaded and loaded again has another family.
  const int known = running ? watch_->family() : -1;
  absl::Status status =
      requests_.Run("listen for dead links", options_.call_timeout, [joined, known]() -> absl::Status {
        absl::StatusOr<GenlSocket> socket = GenlSocket::Open();
        if (!socket.ok()) return socket.status();
        absl::StatusOr<int> family = Resolve(*socket);
        if (!family.ok()) return family.status();
        joined->family = *family;
        if (*family == known) return absl::OkStatus();
        if (absl::Status status = socket->JoinDeadLinks(); !status.ok()) return status;
        joined->socket.emplace(*std::move(socket));
        return absl::OkStatus();
      });
  if (!status.ok() || !joined->socket) return status;
  return watch_->Start(*std::move(joined->socket), joined->family);
}

absl::StatusOr<BlockNode> LibnlNbdKernel::FindDisk(uint32_t index) const {
  const std::vector<BlockNode> nodes = ListNodes(options_.paths, index);
  if (nodes.empty()) return absl::NotFoundError(absl::StrCat("there is no ", DevicePath(index)));
  return nodes.front();
}

std::string LibnlNbdKernel::DescribeTaken(uint32_t index) const {
  const DeviceState state = InspectDisk(options_.paths, index);
  std::string text = absl::StrCat(DevicePath(index), " is taken");
  if (state.pid) {
    absl::StrAppend(&text, ": connected by process ", *state.pid);
    if (!state.backend_identifier.empty()) absl::StrAppend(&text, " as \"", state.backend_identifier, "\"");
  } else {
    absl::StrAppend(&text, ": somebody holds it open");
  }
  return absl::StrCat(text, "; choose another, or none to get a free one");
}

absl::Status LibnlNbdKernel::RunOpening(std::string name, absl::Duration at_most,
                                        absl::AnyInvocable<absl::Status()> call) {
  if (openings_->fetch_add(1) >= kMaxOpenings) {
    openings_->fetch_sub(1);
    return absl::ResourceExhaustedError(
        absl::StrCat(name, ": not tried, as ", kMaxOpenings, " calls on nbd devices hang in the kernel"));
  }
  CallThread thread("berth-nbd-open");
  return thread.Run(std::move(name), at_most, [call = std::move(call), openings = openings_]() mutable {
    absl::Status status = RunInChild([&call] { return call(); });
    openings->fetch_sub(1);
    return status;
  });
}

}  // namespace berth::netlink
