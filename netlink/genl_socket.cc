#include "netlink/genl_socket.h"

#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace berth::netlink {
namespace {

// Holds 256 sockets and the longest identifier.
constexpr size_t kMessageBytes = 8192;
// The kernel answers inside send(), so an answer that is not there will not come. See CallThread for what
// hangs.
constexpr timeval kReceiveTimeout = {2, 0};

absl::Status LibraryError(const char* what, int error) {
  const std::string text = absl::StrCat(what, ": ", nl_geterror(error));
  switch (-error) {
    case NLE_OBJ_NOTFOUND:
      return absl::NotFoundError(text);
    case NLE_PERM:
    case NLE_NOACCESS:
      return absl::PermissionDeniedError(text);
    case NLE_NOMEM:
      return absl::ResourceExhaustedError(text);
    default:
      return absl::InternalError(text);
  }
}

// Adds attributes to a message, and remembers whether one did not fit.
class Builder {
 public:
  Builder(int family, uint8_t command) : message_(nlmsg_alloc_size(kMessageBytes)) {
    ok_ = message_ != nullptr && genlmsg_put(message_.get(), NL_AUTO_PORT, NL_AUTO_SEQ, family, 0, 0, command,
                                             NBD_GENL_VERSION) != nullptr;
  }

  void U32(int attribute, uint32_t value) { ok_ = ok_ && nla_put_u32(message_.get(), attribute, value) == 0; }
  void U64(int attribute, uint64_t value) { ok_ = ok_ && nla_put_u64(message_.get(), attribute, value) == 0; }
  void Seconds(int attribute, absl::Duration value) {
    U64(attribute, static_cast<uint64_t>(absl::ToInt64Seconds(value)));
  }
  void Text(int attribute, const std::string& value) {
    ok_ = ok_ && nla_put_string(message_.get(), attribute, value.c_str()) == 0;
  }
  void Sockets(const std::vector<int>& sockets) {
    nlattr* const list = Nest(NBD_ATTR_SOCKETS);
    for (const int fd : sockets) {
      nlattr* const item = Nest(NBD_SOCK_ITEM);
      U32(NBD_SOCK_FD, static_cast<uint32_t>(fd));
      if (ok_) nla_nest_end(message_.get(), item);
    }
    if (ok_) nla_nest_end(message_.get(), list);
  }

  NlMessage Finish() { return ok_ ? std::move(message_) : nullptr; }

 private:
  nlattr* Nest(int attribute) {
    nlattr* const nest = ok_ ? nla_nest_start(message_.get(), attribute) : nullptr;
    ok_ = nest != nullptr;
    return nest;
  }

  NlMessage message_;
  bool ok_ = false;
};

// The text that the kernel adds to an error where NETLINK_EXT_ACK is on.
std::string Explanation(const nlmsghdr* header, const nlmsgerr* error) {
  if ((header->nlmsg_flags & NLM_F_ACK_TLVS) == 0) return "";
  size_t offset = sizeof(nlmsgerr);
  // Without NETLINK_CAP_ACK the whole request stands between.
  if ((header->nlmsg_flags & NLM_F_CAPPED) == 0 && error->msg.nlmsg_len > sizeof(nlmsghdr)) {
    offset += NLMSG_ALIGN(error->msg.nlmsg_len - sizeof(nlmsghdr));
  }
  const auto size = static_cast<size_t>(nlmsg_datalen(header));
  if (offset >= size) return "";
  const auto* attributes = reinterpret_cast<const nlattr*>(reinterpret_cast<const char*>(error) + offset);
  const nlattr* const text =
      nla_find(const_cast<nlattr*>(attributes), static_cast<int>(size - offset), NLMSGERR_ATTR_MSG);
  if (text == nullptr) return "";
  const char* const begin = static_cast<const char*>(nla_data(text));
  return std::string(begin, strnlen(begin, static_cast<size_t>(nla_len(text))));
}

}  // namespace

NlMessage ConnectMessage(int family, const ConnectRequest& request) {
  Builder builder(family, NBD_CMD_CONNECT);
  if (request.index) builder.U32(NBD_ATTR_INDEX, *request.index);
  builder.U64(NBD_ATTR_SIZE_BYTES, request.size_bytes);
  builder.U64(NBD_ATTR_BLOCK_SIZE_BYTES, request.block_size);
  builder.Seconds(NBD_ATTR_TIMEOUT, request.timeout);
  builder.Seconds(NBD_ATTR_DEAD_CONN_TIMEOUT, request.dead_connection_timeout);
  builder.U64(NBD_ATTR_SERVER_FLAGS, request.server_flags);
  builder.U64(NBD_ATTR_CLIENT_FLAGS, request.client_flags);
  if (!request.backend_identifier.empty()) {
    builder.Text(NBD_ATTR_BACKEND_IDENTIFIER, request.backend_identifier);
  }
  builder.Sockets(request.sockets);
  return builder.Finish();
}

NlMessage DisconnectMessage(int family, uint32_t index) {
  Builder builder(family, NBD_CMD_DISCONNECT);
  builder.U32(NBD_ATTR_INDEX, index);
  return builder.Finish();
}

NlMessage ReconfigureMessage(int family, const ReconfigureRequest& request) {
  Builder builder(family, NBD_CMD_RECONFIGURE);
  builder.U32(NBD_ATTR_INDEX, request.index);
  if (!request.backend_identifier.empty()) {
    builder.Text(NBD_ATTR_BACKEND_IDENTIFIER, request.backend_identifier);
  }
  if (request.size_bytes) builder.U64(NBD_ATTR_SIZE_BYTES, *request.size_bytes);
  if (request.block_size) builder.U64(NBD_ATTR_BLOCK_SIZE_BYTES, *request.block_size);
  if (request.timeout) builder.Seconds(NBD_ATTR_TIMEOUT, *request.timeout);
  if (request.dead_connection_timeout) {
    builder.Seconds(NBD_ATTR_DEAD_CONN_TIMEOUT, *request.dead_connection_timeout);
  }
  if (!request.sockets.empty()) builder.Sockets(request.sockets);
  return builder.Finish();
}

bool ReadAnswer(const nlmsghdr* messages, int size, uint32_t sequence, KernelAnswer& answer) {
  for (auto* header = const_cast<nlmsghdr*>(messages); nlmsg_ok(header, size);
       header = nlmsg_next(header, &size)) {
    if (header->nlmsg_seq != sequence) continue;
    if (header->nlmsg_type == NLMSG_ERROR) {
      if (nlmsg_datalen(header) < static_cast<int>(sizeof(nlmsgerr))) continue;
      const auto* error = static_cast<const nlmsgerr*>(nlmsg_data(header));
      answer.error = -error->error;
      answer.explanation = Explanation(header, error);
      return true;
    }
    if (header->nlmsg_type < NLMSG_MIN_TYPE || !genlmsg_valid_hdr(header, 0)) continue;
    const genlmsghdr* const generic = genlmsg_hdr(header);
    if (generic->cmd != NBD_CMD_CONNECT) continue;
    const nlattr* const index =
        nla_find(genlmsg_attrdata(generic, 0), genlmsg_attrlen(generic, 0), NBD_ATTR_INDEX);
    if (index != nullptr && nla_len(index) == static_cast<int>(sizeof(uint32_t)))
      answer.index = nla_get_u32(index);
  }
  return false;
}

absl::StatusOr<GenlSocket> GenlSocket::Open() {
  nl_sock* const raw = nl_socket_alloc();
  if (raw == nullptr) return absl::ResourceExhaustedError("no memory for a netlink socket");
  GenlSocket socket(raw);
  // libnl opens it with SOCK_CLOEXEC.
  if (const int error = genl_connect(raw); error != 0)
    return LibraryError("cannot open a netlink socket", error);
  const int fd = nl_socket_get_fd(raw);
  const int on = 1;
  // Both only make errors say more: kernels before 4.12 have neither.
  (void)setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
  (void)setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on));
  if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kReceiveTimeout, sizeof(kReceiveTimeout)) != 0) {
    return absl::InternalError(absl::StrCat("cannot bound a netlink socket's wait: ", strerror(errno)));
  }
  return socket;
}

absl::StatusOr<int> GenlSocket::ResolveFamily() {
  const int family = genl_ctrl_resolve(socket_.get(), NBD_GENL_FAMILY_NAME);
  if (family < 0) return LibraryError("generic-netlink family nbd", family);
  return family;
}

absl::Status GenlSocket::JoinDeadLinks() {
  const int group = genl_ctrl_resolve_grp(socket_.get(), NBD_GENL_FAMILY_NAME, NBD_GENL_MCAST_GROUP_NAME);
  if (group < 0) return LibraryError("multicast group nbd_mc_group", group);
  if (const int error = nl_socket_add_membership(socket_.get(), group); error != 0) {
    return LibraryError("cannot join the multicast group nbd_mc_group", error);
  }
  return absl::OkStatus();
}

absl::StatusOr<KernelAnswer> GenlSocket::Exchange(nl_msg* message) {
  if (message == nullptr) return absl::ResourceExhaustedError("no memory for a netlink message");
  // Fills in sequence number, port and the flags that ask for an acknowledgement.
  if (const int sent = nl_send_auto(socket_.get(), message); sent < 0) {
    return LibraryError("cannot send a netlink message", sent);
  }
  const uint32_t sequence = nlmsg_hdr(message)->nlmsg_seq;
  KernelAnswer answer;
  while (true) {
    sockaddr_nl from = {};
    unsigned char* data = nullptr;
    const int size = nl_recv(socket_.get(), &from, &data, nullptr);
    if (size < 0) return LibraryError("no answer on the netlink socket", size);
    if (size == 0) return absl::InternalError("no answer on the netlink socket");
    const std::unique_ptr<unsigned char, void (*)(void*)> owned(data, free);
    if (from.nl_pid != 0) continue;  // Not from the kernel.
    if (ReadAnswer(reinterpret_cast<const nlmsghdr*>(data), size, sequence, answer)) return answer;
  }
}

}  // namespace berth::netlink
