#include "tests/interop/peer.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace berth::testing {
namespace {

// The first descriptor that a process gets from systemd (sd_listen_fds(3)).
constexpr int kInheritedSocket = 3;

absl::StatusOr<UniqueFd> ListenUnix(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return absl::InvalidArgumentError(path);
  memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket || bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(socket.get(), SOMAXCONN) != 0) {
    return absl::ErrnoToStatus(errno, path);
  }
  return socket;
}

absl::StatusOr<UniqueFd> ListenTcp(std::string* port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket || bind(socket.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(socket.get(), SOMAXCONN) != 0 ||
      getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return absl::ErrnoToStatus(errno, "127.0.0.1");
  }
  *port = absl::StrCat(ntohs(address.sin_port));
  return socket;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Peer>> Peer::Start(const std::vector<std::string>& command,
                                                  const std::string& folder, bool tcp) {
  std::unique_ptr<Peer> peer(new Peer);
  if (!tcp) peer->socket_path_ = absl::StrCat(folder, "/peer.sock");
  absl::StatusOr<UniqueFd> listening = tcp ? ListenTcp(&peer->port_) : ListenUnix(peer->socket_path_);
  if (!listening.ok()) return listening.status();

  // The variables must name the process that reads them, so that a shell sets them and becomes it.
  std::vector<std::string> arguments = {"sh", "-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh"};
  arguments.insert(arguments.end(), command.begin(), command.end());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const std::string log = absl::StrCat(folder, "/peer.log");

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  // A descriptor that has this number already keeps its close-on-exec flag, so it is moved away first.
  const UniqueFd elsewhere(fcntl(listening->get(), F_DUPFD_CLOEXEC, kInheritedSocket + 1));
  posix_spawn_file_actions_adddup2(&actions, elsewhere.get(), kInheritedSocket);
  const int spawned = posix_spawnp(&peer->process_, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (spawned != 0) return absl::ErrnoToStatus(spawned, command[0]);
  return peer;
}

Peer::~Peer() {
  if (process_ < 0) return;
  kill(process_, SIGKILL);
  while (waitpid(process_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

std::string Peer::Uri(const std::string& name) const {
  if (port_.empty()) return absl::StrCat("nbd+unix:///", name, "?socket=", socket_path_);
  return absl::StrCat("nbd://127.0.0.1:", port_, "/", name);
}

std::vector<std::string> Peer::NbdClientArguments() const {
  if (port_.empty()) return {"-unix", socket_path_};
  return {"127.0.0.1", port_};
}

std::vector<std::string> QemuNbdCommand(const std::string& image, const std::string& description) {
  return {"qemu-nbd",        "-f", "raw",  "-t", "-e",        "64",
          "--discard=unmap", "-x", "disk", "-D", description, image};
}

std::vector<std::string> NbdkitCommand(const std::string& image, const std::string& description) {
  return {"nbdkit",
          "-f",
          "--filter=exportname",
          "file",
          image,
          "default-export=disk",
          "exportname=disk",
          "exportdesc=fixed:" + description,
          "exportname-list=explicit",
          "exportname-strict=true"};
}

std::vector<std::string> NbdkitProxyCommand(const std::string& uri) {
  return {"nbdkit", "-f", "nbd", "uri=" + uri, "shared=true"};
}

}  // namespace berth::testing
