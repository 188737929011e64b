// LibnlNbdKernel: NbdKernel over libnl-3.
//
// Needs no nbd in the kernel to be created: the module is looked for, and loaded, by the first Connect().
// Requests are sent from one thread, `berth-netlink`, which lives as long as the object; the kernel takes
// that thread's number as the device's `pid`, so /proc/PID/status of DeviceState::pid shows the process
// behind it (its Tgid).
#ifndef BERTH_NETLINK_LIBNL_NBD_KERNEL_H_
#define BERTH_NETLINK_LIBNL_NBD_KERNEL_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "netlink/call_thread.h"
#include "netlink/dead_link_watch.h"
#include "netlink/device_state.h"
#include "netlink/nbd_kernel.h"

namespace berth::netlink {

struct LibnlNbdKernelOptions {
  absl::Duration call_timeout = absl::Seconds(15);    // For one netlink request.
  absl::Duration open_timeout = absl::Seconds(5);     // For FindUse() and Disconnect() to open it.
  absl::Duration module_timeout = absl::Seconds(30);  // For modprobe.
  bool load_module = true;
  std::string modprobe = "/sbin/modprobe";
  SystemPaths paths;
};

class LibnlNbdKernel final : public NbdKernel {
 public:
  static std::unique_ptr<LibnlNbdKernel> Create(LibnlNbdKernelOptions options = {});

  absl::StatusOr<uint32_t> Connect(const ConnectRequest& request) override;
  absl::Status Disconnect(uint32_t index) override;
  absl::Status Reconfigure(const ReconfigureRequest& request) override;
  absl::StatusOr<DeviceState> Inspect(uint32_t index) override;
  absl::StatusOr<DeviceUse> FindUse(uint32_t index) override;
  absl::Status WaitUntilUsable(uint32_t index, uint64_t size_bytes, absl::Duration at_most) override;
  absl::Status WaitUntilFree(uint32_t index, absl::Duration at_most) override;
  absl::StatusOr<std::vector<uint32_t>> ListDevices() override;
  absl::Status WatchDeadLinks(absl::AnyInvocable<void(uint32_t)> listener) override;

 private:
  explicit LibnlNbdKernel(LibnlNbdKernelOptions options) : options_(std::move(options)) {}

  absl::Status EnsureModule();
  // Listens where there is a listener and the kernel has the family, unless it does already.
  absl::Status EnsureWatch();
  absl::StatusOr<BlockNode> FindDisk(uint32_t index) const;
  // What there is to say of a device that Connect() found taken.
  std::string DescribeTaken(uint32_t index) const;
  // Runs a call that opens the device, in a process of its own: see child_call.h. RESOURCE_EXHAUSTED where
  // too many such calls hang.
  absl::Status RunOpening(std::string name, absl::Duration at_most, absl::AnyInvocable<absl::Status()> call);

  const LibnlNbdKernelOptions options_;
  CallThread requests_{"berth-netlink"};
  const std::shared_ptr<std::atomic<int>> openings_ = std::make_shared<std::atomic<int>>(0);
  std::mutex module_mutex_;  // Held while modprobe runs. Before watch_mutex_.
  std::mutex watch_mutex_;
  std::unique_ptr<DeadLinkWatch> watch_;  // Guarded by watch_mutex_.
};

}  // namespace berth::netlink

#endif  // BERTH_NETLINK_LIBNL_NBD_KERNEL_H_
