#include "control/berth_nbd/listening.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "nbd/address.h"

namespace berth::control {
namespace {

constexpr int kActivationSocket = 3;  // sd_listen_fds(3).

// The label of sockets that this thread makes, while it lives (SELinux' setsockcreatecon).
class SocketLabel {
 public:
  absl::Status Set(const std::string& label) {
    UniqueFd file(open("/proc/thread-self/attr/sockcreate", O_RDWR | O_CLOEXEC));
    if (!file || write(file.get(), label.data(), label.size() + 1) < 0) {
      return absl::ErrnoToStatus(errno,
                                 absl::StrCat("--selinux-label is '", label.substr(0, 200),
                                              "', which this system does not take; SELinux must be on"));
    }
    file_ = std::move(file);
    return absl::OkStatus();
  }
  ~SocketLabel() {
    if (!file_) return;
    [[maybe_unused]] const ssize_t written = write(file_.get(), "", 0);
  }

 private:
  UniqueFd file_;
};

// What a file would get that is made without a mode.
mode_t DefaultMode() {
  const mode_t mask = umask(0);
  umask(mask);
  return 0777 & ~mask;
}

absl::Status StopBlocking(const UniqueFd& socket) {
  const int flags = fcntl(socket.get(), F_GETFL);
  if (flags < 0 || fcntl(socket.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return absl::ErrnoToStatus(errno, "fcntl of the listening socket");
  }
  return absl::OkStatus();
}

// The option that says how to listen, where one does.
std::string ListeningOption(const CommandLine& line) {
  if (!line.device.empty()) return "-c";
  if (!line.socket.empty()) return "-k";
  if (line.bind.has_value()) return "-b";
  if (line.port.has_value()) return "-p";
  if (!line.selinux_label.empty()) return "--selinux-label";
  if (line.action == CommandLine::Action::kList) return "-L";
  return "";
}

}  // namespace

absl::StatusOr<std::optional<UniqueFd>> TakeActivationSocket(const CommandLine& line) {
  const char* pid = getenv("LISTEN_PID");
  const char* count = getenv("LISTEN_FDS");
  int64_t number = 0;
  if (pid == nullptr || count == nullptr || !absl::SimpleAtoi(pid, &number) || number != getpid())
    return std::nullopt;
  if (!absl::SimpleAtoi(count, &number) || number <= 0) return std::nullopt;
  unsetenv("LISTEN_PID");
  unsetenv("LISTEN_FDS");
  unsetenv("LISTEN_FDNAMES");
  if (std::string option = ListeningOption(line); !option.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(option, " does not go together with a socket that is handed over (LISTEN_FDS)"));
  }
  if (number != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("LISTEN_FDS is '", number, "'; one socket can be served, so it must be 1"));
  }
  int listening = 0;
  socklen_t size = sizeof(listening);
  if (getsockopt(kActivationSocket, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0 || listening == 0) {
    return absl::InvalidArgumentError("LISTEN_FDS is '1', and descriptor 3 is no socket that listens");
  }
  UniqueFd socket(kActivationSocket);
  fcntl(socket.get(), F_SETFD, FD_CLOEXEC);
  return std::optional<UniqueFd>(std::move(socket));
}

absl::StatusOr<Listening> Listen(const CommandLine& line, std::optional<UniqueFd> activation) {
  Listening listening;
  if (activation.has_value()) {
    listening.sockets.push_back(*std::move(activation));
  } else {
    nbd::Address address;
    if (line.socket.empty()) {
      address.kind = nbd::Address::Kind::kTcp;
      address.host = line.bind.value_or("0.0.0.0");
      address.port = line.port.value_or(nbd::Address::kDefaultPort);
    } else {
      address.path = line.socket;
    }
    nbd::ListenOptions options;
    options.socket_mode = DefaultMode();
    options.backlog = line.persistent || line.shared == 0
                          ? SOMAXCONN
                          : static_cast<int>(std::min<uint32_t>(line.shared, SOMAXCONN));
    SocketLabel label;
    if (!line.selinux_label.empty()) {
      if (absl::Status status = label.Set(line.selinux_label); !status.ok()) return status;
    }
    absl::StatusOr<std::unique_ptr<nbd::Listener>> listener = nbd::Listener::Open(address, options);
    if (!listener.ok()) return listener.status();
    listening.listener = *std::move(listener);
    listening.sockets = listening.listener->TakeSockets();
  }
  for (const UniqueFd& socket : listening.sockets) {
    if (absl::Status status = StopBlocking(socket); !status.ok()) return status;
  }
  return listening;
}

}  // namespace berth::control
