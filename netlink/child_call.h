// RunInChild: a call that may hang in the kernel for good, in a process of its own.
//
// Whoever opens or reads a device waits for its server out of reach of SIGKILL, and the server is often this
// very process: killed while a thread of its own waits like that, it could not end, its sockets would stay
// open, and neither would the kernel see that the server is dead nor the next one get its locks. A child
// holds none of them, so what it waits for can come.
#ifndef BERTH_NETLINK_CHILD_CALL_H_
#define BERTH_NETLINK_CHILD_CALL_H_

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace berth::netlink {

// Forks, runs `call` in the child without any descriptor but 0 to 2, and returns the child's status, whose
// message is cut at 2,000 bytes. What `call` changes in memory stays in the child; it takes no lock that
// another thread may hold. Waits as long as the child does, interruptibly. The child is killed where the
// calling thread ends first.
absl::Status RunInChild(absl::FunctionRef<absl::Status()> call);

}  // namespace berth::netlink

#endif  // BERTH_NETLINK_CHILD_CALL_H_
