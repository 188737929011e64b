// Reads what sysfs and procfs say of nbd devices. Opens no device and asks no netlink.
#ifndef BERTH_NETLINK_DEVICE_STATE_H_
#define BERTH_NETLINK_DEVICE_STATE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "netlink/nbd_kernel.h"

namespace berth::netlink {

// Where the file systems are mounted; tests have trees of their own.
struct SystemPaths {
  std::string sys = "/sys";
  std::string proc = "/proc";
  std::string dev = "/dev";
};

// A disk or a partition.
struct BlockNode {
  std::string name;    // "nbd0p1".
  std::string number;  // "43:1", as sysfs and mountinfo write it.
};

std::string DeviceName(uint32_t index);

// The disk nbd`index` and then its partitions; empty where there is no such disk.
std::vector<BlockNode> ListNodes(const SystemPaths& paths, uint32_t index);

// Whether the module is loaded or built in.
bool HasNbdModule(const SystemPaths& paths);

// DeviceState without mount points, which are what costs on a host with many mounts.
DeviceState InspectDisk(const SystemPaths& paths, uint32_t index);

// Where the nodes are mounted in this mount namespace, and "swap" for swap areas; at most 64. A node is found
// by its number; btrfs, which shows a number of its own, by the name of the device in /dev, and only by the
// first of several devices. Mounts of other namespaces and detached ones are not seen: FindUse() sees them.
absl::StatusOr<std::vector<std::string>> FindMountPoints(const SystemPaths& paths,
                                                         const std::vector<BlockNode>& nodes);

// Loop devices whose file is one of the nodes ("loop0"): they hold it open in the kernel, where neither a
// claim nor a process shows it. Such a file is known by the path that it was opened with.
std::vector<std::string> FindLoops(const SystemPaths& paths, const std::vector<BlockNode>& nodes);

// Indexes of all nbd disks, in order; empty where the kernel has none.
absl::StatusOr<std::vector<uint32_t>> ListDisks(const SystemPaths& paths);

}  // namespace berth::netlink

#endif  // BERTH_NETLINK_DEVICE_STATE_H_
