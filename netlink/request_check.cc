#include "netlink/request_check.h"

#include <linux/nbd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace berth::netlink {
namespace {

constexpr uint64_t kSectorBytes = 512;
// The kernel keeps sizes as loff_t.
constexpr uint64_t kMaxSizeBytes = std::numeric_limits<int64_t>::max();
// A sanity bound: the kernel uses no more queues than there are CPUs, and the message must fit in a page or
// two.
constexpr size_t kMaxSockets = 256;
// Seconds times HZ must fit in the kernel's int.
constexpr absl::Duration kMaxTimeout = absl::Hours(24);
// A sysfs attribute is one page, newline included.
constexpr size_t kMaxIdentifierBytes = 1024;

absl::Status CheckIndex(uint32_t index) {
  // The kernel reads the index as an int, and 0xffffffff as "any".
  if (index > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
    return absl::InvalidArgumentError(
        absl::StrCat("device index ", index, " is out of range: /dev/nbdN has N below 2^31"));
  }
  return absl::OkStatus();
}

absl::Status CheckSize(uint64_t size_bytes) {
  if (size_bytes == 0 || size_bytes % kSectorBytes != 0 || size_bytes > kMaxSizeBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("size of ", size_bytes,
                     " bytes: an nbd device has a multiple of 512 bytes, at least 512 "
                     "and below 2^63"));
  }
  return absl::OkStatus();
}

absl::Status CheckBlockSize(uint32_t block_size) {
  const auto page_size = static_cast<uint32_t>(sysconf(_SC_PAGESIZE));
  if (block_size < kSectorBytes || block_size > page_size || (block_size & (block_size - 1)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("block size ", block_size, ": must be a power of two from 512 to ", page_size));
  }
  return absl::OkStatus();
}

absl::Status CheckTimeout(absl::string_view field, absl::Duration timeout, absl::Duration least) {
  if (timeout < least || timeout > kMaxTimeout || timeout != absl::Trunc(timeout, absl::Seconds(1))) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " of ", absl::FormatDuration(timeout), ": must be whole seconds from ",
                     absl::FormatDuration(least), " to ", absl::FormatDuration(kMaxTimeout)));
  }
  return absl::OkStatus();
}

absl::Status CheckIdentifier(absl::string_view identifier) {
  if (identifier.size() > kMaxIdentifierBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("backend identifier of ", identifier.size(), " bytes: at most ", kMaxIdentifierBytes));
  }
  // sysfs gives it back as one line.
  for (const char c : identifier) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      return absl::InvalidArgumentError("backend identifier holds a control character");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSockets(const std::vector<int>& sockets) {
  if (sockets.size() > kMaxSockets) {
    return absl::InvalidArgumentError(absl::StrCat(sockets.size(), " sockets: at most ", kMaxSockets));
  }
  for (const int fd : sockets) {
    int type = 0;
    socklen_t length = sizeof(type);
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0) {
      return absl::InvalidArgumentError(absl::StrCat("descriptor ", fd, " is no socket: ", strerror(errno)));
    }
    if (type != SOCK_STREAM) {
      return absl::InvalidArgumentError(
          absl::StrCat("socket ", fd, " has type ", type, ": the kernel takes stream sockets only"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckConnect(const ConnectRequest& request) {
  if (request.index) {
    if (absl::Status status = CheckIndex(*request.index); !status.ok()) return status;
  }
  if (absl::Status status = CheckSize(request.size_bytes); !status.ok()) return status;
  if (absl::Status status = CheckBlockSize(request.block_size); !status.ok()) return status;
  if (absl::Status status = CheckTimeout("timeout", request.timeout, absl::Seconds(1)); !status.ok()) {
    return status;
  }
  if (absl::Status status =
          CheckTimeout("dead_connection_timeout", request.dead_connection_timeout, absl::ZeroDuration());
      !status.ok()) {
    return status;
  }
  if (absl::Status status = CheckIdentifier(request.backend_identifier); !status.ok()) return status;
  if (request.sockets.empty()) return absl::InvalidArgumentError("connect without a socket");
  if (request.sockets.size() > 1 && (request.server_flags & NBD_FLAG_CAN_MULTI_CONN) == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        request.sockets.size(),
        " sockets: more than one needs NBD_FLAG_CAN_MULTI_CONN (0x100) in server_flags, which are 0x",
        absl::Hex(request.server_flags)));
  }
  return CheckSockets(request.sockets);
}

absl::Status CheckReconfigure(const ReconfigureRequest& request) {
  if (absl::Status status = CheckIndex(request.index); !status.ok()) return status;
  if (!request.sockets.empty() && (request.size_bytes || request.block_size)) {
    return absl::InvalidArgumentError(
        "size and sockets in one reconfigure: the kernel would freeze the queue before it has the sockets; "
        "repair "
        "first, resize afterwards");
  }
  if (request.size_bytes) {
    if (absl::Status status = CheckSize(*request.size_bytes); !status.ok()) return status;
  }
  if (request.block_size) {
    if (absl::Status status = CheckBlockSize(*request.block_size); !status.ok()) return status;
  }
  if (request.timeout) {
    if (absl::Status status = CheckTimeout("timeout", *request.timeout, absl::Seconds(1)); !status.ok()) {
      return status;
    }
  }
  if (request.dead_connection_timeout) {
    if (absl::Status status =
            CheckTimeout("dead_connection_timeout", *request.dead_connection_timeout, absl::ZeroDuration());
        !status.ok()) {
      return status;
    }
  }
  if (absl::Status status = CheckIdentifier(request.backend_identifier); !status.ok()) return status;
  return CheckSockets(request.sockets);
}

}  // namespace berth::netlink
