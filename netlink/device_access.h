// What needs a device node to be opened. Every function here may wait for the device's server; see
// call_thread.h.
#ifndef BERTH_NETLINK_DEVICE_ACCESS_H_
#define BERTH_NETLINK_DEVICE_ACCESS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "netlink/device_state.h"

namespace berth::netlink {

// Whether /dev has the block device that `node` names. NOT_FOUND where it has nothing of the name,
// FAILED_PRECONDITION where it has something else.
absl::Status CheckNode(const SystemPaths& paths, const BlockNode& node);

// Opens the disk, which makes the kernel read its partition table where it has not yet, and reads its last
// block past the page cache. FAILED_PRECONDITION where the size differs, INTERNAL where it cannot be read.
absl::Status ReadLastBlock(const SystemPaths& paths, const BlockNode& disk, uint64_t size_bytes);

// Whether somebody holds the disk or one of its partitions exclusively.
absl::StatusOr<bool> IsClaimed(const SystemPaths& paths, const BlockNode& disk);

// Makes the kernel forget the partitions of a disk that are not in use. `nodes` are those of ListNodes().
absl::Status DropPartitions(const SystemPaths& paths, const std::vector<BlockNode>& nodes);

// Processes that have one of `nodes` open, as "command (pid N)", at most 16. Sees what /proc shows to this
// process, and only files opened through a folder named dev: asking anything else for its number might hang
// in its file system.
std::vector<std::string> FindOpeners(const SystemPaths& paths, const std::vector<BlockNode>& nodes);

}  // namespace berth::netlink

#endif  // BERTH_NETLINK_DEVICE_ACCESS_H_
