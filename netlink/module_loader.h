// Loads the kernel's nbd module.
#ifndef BERTH_NETLINK_MODULE_LOADER_H_
#define BERTH_NETLINK_MODULE_LOADER_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace berth::netlink {

// Runs `modprobe nbd` with the program at `modprobe`, so that the administrator's options of modprobe.d hold.
// FAILED_PRECONDITION with what it said where it failed or cannot be run; DEADLINE_EXCEEDED where it did not
// end within `at_most`, when it is killed. OK is no proof: ask for the family.
absl::Status LoadNbdModule(const std::string& modprobe, absl::Duration at_most);

}  // namespace berth::netlink

#endif  // BERTH_NETLINK_MODULE_LOADER_H_
