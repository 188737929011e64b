// DeadLinkWatch hands on the kernel's NBD_CMD_LINK_DEAD messages.
#ifndef BERTH_NETLINK_DEAD_LINK_WATCH_H_
#define BERTH_NETLINK_DEAD_LINK_WATCH_H_

#include <linux/netlink.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "netlink/genl_socket.h"

namespace berth::netlink {

// The device indexes of the dead-link messages of family `family` in one datagram.
std::vector<uint32_t> ReadDeadLinks(const nlmsghdr* messages, int size, int family);

// A thread of its own calls the listener; Start(), Stop() and the rest belong to one thread at a time.
class DeadLinkWatch {
 public:
  explicit DeadLinkWatch(absl::AnyInvocable<void(uint32_t)> listener);
  ~DeadLinkWatch();

  // Listens on `socket`, which has joined the group of family `family`. Ends an earlier watch first.
  absl::Status Start(GenlSocket socket, int family);
  // False also where the socket failed; Start() again.
  bool IsRunning() const { return running_; }
  int family() const { return family_; }

 private:
  void Serve(const GenlSocket& socket);
  void Stop();

  absl::AnyInvocable<void(uint32_t)> listener_;
  const int stop_fd_;
  int family_ = -1;
  std::atomic<bool> running_ = false;
  std::thread thread_;
};

}  // namespace berth::netlink

#endif  // BERTH_NETLINK_DEAD_LINK_WATCH_H_
