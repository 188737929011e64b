#include "netlink/dead_link_watch.h"

#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <netlink/attr.h>
#include <netlink/genl/genl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace berth::netlink {
namespace {

// A message has 28 bytes; a datagram holds one.
constexpr size_t kDatagramBytes = 4096;

}  // namespace

std::vector<uint32_t> ReadDeadLinks(const nlmsghdr* messages, int size, int family) {
  std::vector<uint32_t> indexes;
  for (auto* header = const_cast<nlmsghdr*>(messages); nlmsg_ok(header, size);
       header = nlmsg_next(header, &size)) {
    if (header->nlmsg_type != family || !genlmsg_valid_hdr(header, 0)) continue;
    const genlmsghdr* const generic = genlmsg_hdr(header);
    if (generic->cmd != NBD_CMD_LINK_DEAD) continue;
    const nlattr* const index =
        nla_find(genlmsg_attrdata(generic, 0), genlmsg_attrlen(generic, 0), NBD_ATTR_INDEX);
    if (index == nullptr || nla_len(index) != static_cast<int>(sizeof(uint32_t))) continue;
    indexes.push_back(nla_get_u32(index));
  }
  return indexes;
}

DeadLinkWatch::DeadLinkWatch(absl::AnyInvocable<void(uint32_t)> listener)
    : listener_(std::move(listener)), stop_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

DeadLinkWatch::~DeadLinkWatch() {
  Stop();
  if (stop_fd_ >= 0) close(stop_fd_);
}

absl::Status DeadLinkWatch::Start(GenlSocket socket, int family) {
  if (stop_fd_ < 0) return absl::ResourceExhaustedError("no descriptor left for the watch of dead links");
  Stop();
  family_ = family;
  running_ = true;
  thread_ = std::thread([this, socket = std::move(socket)] { Serve(socket); });
  pthread_setname_np(thread_.native_handle(), "nbd-dead-links");
  return absl::OkStatus();
}

void DeadLinkWatch::Stop() {
  if (!thread_.joinable()) return;
  uint64_t count = 1;
  (void)!write(stop_fd_, &count, sizeof(count));
  thread_.join();
  (void)!read(stop_fd_, &count, sizeof(count));
}

void DeadLinkWatch::Serve(const GenlSocket& socket) {
  alignas(nlmsghdr) char datagram[kDatagramBytes];
  while (true) {
    pollfd polled[] = {{socket.fd(), POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    if (poll(polled, 2, -1) < 0 && errno != EINTR) break;
    if (polled[1].revents != 0) break;
    if (polled[0].revents == 0) continue;
    sockaddr_nl from = {};
    socklen_t from_size = sizeof(from);
    const ssize_t size = recvfrom(socket.fd(), datagram, sizeof(datagram), MSG_DONTWAIT,
                                  reinterpret_cast<sockaddr*>(&from), &from_size);
    if (size < 0) {
      // ENOBUFS: messages were lost, which the listener knows to expect.
      if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS) continue;
      break;
    }
    if (from.nl_pid != 0) continue;  // Not from the kernel.
    for (const uint32_t index :
         ReadDeadLinks(reinterpret_cast<const nlmsghdr*>(datagram), static_cast<int>(size), family_)) {
      listener_(index);
    }
  }
  running_ = false;
}

}  // namespace berth::netlink
