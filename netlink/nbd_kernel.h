// NbdKernel: the kernel's NBD client, driven over generic netlink (include/uapi/linux/nbd-netlink.h).
//
// Sees only descriptors, sizes and flags: what is behind a socket is the caller's business.
#ifndef BERTH_NETLINK_NBD_KERNEL_H_
#define BERTH_NETLINK_NBD_KERNEL_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace berth::netlink {

struct ConnectRequest {
  std::optional<uint32_t>
      index;  // N of /dev/nbdN; empty lets the kernel choose, which is the only free choice without a race.
  uint64_t size_bytes = 0;
  uint32_t block_size = 512;  // A power of two, 512 to 4096.
  uint64_t server_flags = 0;  // NBD transmission flags (linux/nbd.h).
  uint64_t client_flags = 0;  // NBD_CFLAG_*.
  absl::Duration timeout;  // Whole seconds, at least 1: with more than one socket the kernel reads 0 as 30 s.
  absl::Duration dead_connection_timeout;  // Whole seconds.
  std::string backend_identifier;          // Says whose device it is; ignored by kernels before 5.14.
  std::vector<int> sockets;                // The kernel's ends; the caller may close them afterwards.
};

// What is set is changed. Never both `size_bytes` and `sockets`: that can freeze the device's queue (see
// docs).
struct ReconfigureRequest {
  uint32_t index = 0;
  std::string backend_identifier;  // Must be the device's own, where it has one.
  std::optional<uint64_t> size_bytes;
  std::optional<uint32_t> block_size;
  std::optional<absl::Duration> timeout;
  std::optional<absl::Duration> dead_connection_timeout;
  std::vector<int> sockets;
};

// What sysfs says of /dev/nbdN, which is more than NBD_CMD_STATUS does.
struct DeviceState {
  uint32_t index = 0;
  bool exists = false;         // There is a /sys/block/nbdN.
  std::optional<int32_t> pid;  // The process that connected it, while it is connected.
  uint64_t size_bytes = 0;
  std::string backend_identifier;
  bool read_only = false;
  std::vector<std::string> partitions;  // "nbd0p1", …
  std::vector<std::string> holders;     // Devices stacked on it or on its partitions.
  std::vector<std::string>
      mount_points;  // Where it, or one of its partitions, is mounted in this mount namespace; swap too.

  // The kernel let it go: not connected, no size, nobody on top.
  bool IsFree() const { return !pid && size_bytes == 0 && holders.empty(); }
};

// Who uses a device at this moment, beyond the stacked devices and mounts that DeviceState can see.
struct DeviceUse {
  // Somebody holds the disk or one of its partitions exclusively: a mount (of any mount namespace), swap, a
  // stacked device, mkfs.
  bool claimed = false;
  // Processes that have it open: "fio (pid 1234)". Those of other pid namespaces are not seen, and one that
  // probes in passing (udev's) is: ask twice before refusing because of them. At most 16.
  std::vector<std::string> openers;
};

// Thread-safe. Calls are made on ordinary threads, never on one that serves a device's I/O: each blocks until
// the kernel answers, which needs the generic-netlink lock and, for the calls that open the device, its
// server. Every wait is bounded: a call that the kernel does not answer in time is left to itself and gives
// DEADLINE_EXCEEDED; further netlink calls give UNAVAILABLE until it came back. Errors name the device and
// what to do: FAILED_PRECONDITION (no nbd in this kernel, device busy), PERMISSION_DENIED, NOT_FOUND,
// INVALID_ARGUMENT, RESOURCE_EXHAUSTED.
class NbdKernel {
 public:
  virtual ~NbdKernel() = default;

  // Returns the index of the device that was connected. FAILED_PRECONDITION where the chosen device is taken.
  // A connect that succeeds after its caller got DEADLINE_EXCEEDED is undone.
  virtual absl::StatusOr<uint32_t> Connect(const ConnectRequest& request) = 0;
  // Starts a disconnect; OK also where nothing was connected. The device is free when Inspect() says so.
  virtual absl::Status Disconnect(uint32_t index) = 0;
  // With sockets: each replaces one that is dead. OK also where none is dead; such a socket is dropped, which
  // its other end sees as end-of-file once the caller closed its copy.
  virtual absl::Status Reconfigure(const ReconfigureRequest& request) = 0;
  // Opens nothing and asks no netlink: cheap, and safe for devices of others.
  virtual absl::StatusOr<DeviceState> Inspect(uint32_t index) = 0;
  // Opens the device exclusively for an instant. For connected devices of one's own only: the open reads the
  // partition table where that was not done yet, and an opener keeps a free device from being connected.
  virtual absl::StatusOr<DeviceUse> FindUse(uint32_t index) = 0;
  // Returns when a connected device can be used: `size_bytes` in sysfs, a node in /dev, partitions scanned,
  // the last sector readable.
  virtual absl::Status WaitUntilUsable(uint32_t index, uint64_t size_bytes, absl::Duration at_most) = 0;
  // Returns when the kernel has let the device go (DeviceState::IsFree). DEADLINE_EXCEEDED names what holds
  // it.
  virtual absl::Status WaitUntilFree(uint32_t index, absl::Duration at_most) = 0;
  // Indexes of all nbd devices there are.
  virtual absl::StatusOr<std::vector<uint32_t>> ListDevices() = 0;
  // Calls `listener` with a device's index each time the kernel reports one of its sockets dead, on a thread
  // of the implementation's. Messages may be lost: check from time to time as well. Set once, before the
  // first Connect().
  virtual absl::Status WatchDeadLinks(absl::AnyInvocable<void(uint32_t)> listener) = 0;
};

}  // namespace berth::netlink

#endif  // BERTH_NETLINK_NBD_KERNEL_H_
