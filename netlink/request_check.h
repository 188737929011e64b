// What can be known to be wrong with a request before the kernel is asked, which would only say EINVAL, or,
// worse, accept it (docs: the kernel's NBD client).
#ifndef BERTH_NETLINK_REQUEST_CHECK_H_
#define BERTH_NETLINK_REQUEST_CHECK_H_

#include "absl/status/status.h"
#include "netlink/nbd_kernel.h"

namespace berth::netlink {

// INVALID_ARGUMENT names the field, its value and what is allowed.
absl::Status CheckConnect(const ConnectRequest& request);
absl::Status CheckReconfigure(const ReconfigureRequest& request);

}  // namespace berth::netlink

#endif  // BERTH_NETLINK_REQUEST_CHECK_H_
