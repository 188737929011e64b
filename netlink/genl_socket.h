// GenlSocket: one generic-netlink socket on the kernel's nbd family, and the messages that go over it.
//
// Every method may hang in the kernel; see call_thread.h. One thread at a time.
#ifndef BERTH_NETLINK_GENL_SOCKET_H_
#define BERTH_NETLINK_GENL_SOCKET_H_

#include <netlink/msg.h>
#include <netlink/socket.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "netlink/nbd_kernel.h"

namespace berth::netlink {

struct NlMessageDeleter {
  void operator()(nl_msg* message) const { nlmsg_free(message); }
};
using NlMessage = std::unique_ptr<nl_msg, NlMessageDeleter>;

// Requests of family `family`. Sequence number and port are left to Exchange(). nullptr where memory ran out
// or the request does not fit in a message. `request.sockets` are read by the kernel when the message is
// sent.
NlMessage ConnectMessage(int family, const ConnectRequest& request);
NlMessage DisconnectMessage(int family, uint32_t index);
NlMessage ReconfigureMessage(int family, const ReconfigureRequest& request);

// What the kernel answered.
struct KernelAnswer {
  int error = 0;                  // An errno, 0 for success.
  std::string explanation;        // The kernel's own words (extended ACK), where it has any.
  std::optional<uint32_t> index;  // Of the device, in the answer to a connect.
};

// Reads one datagram's messages into `answer`. True when it held the acknowledgement of `sequence`.
bool ReadAnswer(const nlmsghdr* messages, int size, uint32_t sequence, KernelAnswer& answer);

class GenlSocket {
 public:
  static absl::StatusOr<GenlSocket> Open();

  // The number of the family `nbd`; NOT_FOUND where the kernel has none. Kernels that know the module under
  // the family's alias load it.
  absl::StatusOr<int> ResolveFamily();
  // Receives the multicast messages of the family's group from now on.
  absl::Status JoinDeadLinks();
  // Sends `message` and waits for its acknowledgement.
  absl::StatusOr<KernelAnswer> Exchange(nl_msg* message);

  int fd() const { return nl_socket_get_fd(socket_.get()); }

 private:
  struct Deleter {
    void operator()(nl_sock* socket) const { nl_socket_free(socket); }
  };
  explicit GenlSocket(nl_sock* socket) : socket_(socket) {}

  std::unique_ptr<nl_sock, Deleter> socket_;
};

}  // namespace berth::netlink

#endif  // BERTH_NETLINK_GENL_SOCKET_H_
