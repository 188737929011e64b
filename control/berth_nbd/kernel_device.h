// KernelDevice: an export attached as /dev/nbdN. Detach(): the same undone, for any such device.
#ifndef BERTH_CONTROL_BERTH_NBD_KERNEL_DEVICE_H_
#define BERTH_CONTROL_BERTH_NBD_KERNEL_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "control/device_sessions.h"
#include "image/io/reactor_pool.h"
#include "nbd/export.h"
#include "netlink/nbd_kernel.h"

namespace berth::control {

struct KernelDeviceOptions {
  std::string device;        // "/dev/nbdN" or "auto".
  uint32_t connections = 0;  // 0: as many as are of use.
};

// Not thread-safe. Not on a reactor's thread. Lifetime: reactors, kernel and export outlive it.
class KernelDevice {
 public:
  // Returns when the device can be used and its partitions are there. `on_end` is called once, on a reactor's
  // thread, when the kernel has let go of all connections. Errors as NbdKernel::Connect(), and
  // FAILED_PRECONDITION for an image that is too small or cannot have so many connections.
  static absl::StatusOr<std::unique_ptr<KernelDevice>> Attach(ReactorPool& reactors,
                                                              netlink::NbdKernel& kernel,
                                                              std::shared_ptr<const nbd::Export> served,
                                                              const KernelDeviceOptions& options,
                                                              absl::AnyInvocable<void()> on_end);

  ~KernelDevice();

  std::string path() const;

  // Disconnects, unless that has been done, and ends the sessions. What the kernel still sends is answered
  // first; then whoever uses the device gets I/O errors.
  absl::Status End();

 private:
  KernelDevice(netlink::NbdKernel& kernel, std::unique_ptr<DeviceSessions> sessions)
      : kernel_(kernel), sessions_(std::move(sessions)) {}

  netlink::NbdKernel& kernel_;
  std::unique_ptr<DeviceSessions> sessions_;
  uint32_t index_ = 0;
  bool connected_ = false;
};

// Disconnects `device`, whoever attached it, and waits until it is free. NOT_FOUND where there is no such
// device, OUT_OF_RANGE where nothing is attached to it, FAILED_PRECONDITION where it is mounted or held,
// PERMISSION_DENIED.
absl::Status Detach(netlink::NbdKernel& kernel, const std::string& device);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_KERNEL_DEVICE_H_
