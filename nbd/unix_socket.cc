#include "nbd/unix_socket.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace berth::nbd {
namespace {

constexpr absl::Duration kLockTimeout = absl::Seconds(5);

absl::Status Failed(const std::string& path, absl::string_view what) {
  const int error = errno;
  return absl::ErrnoToStatus(error, absl::StrCat("socket '", path, "': ", what));
}

sockaddr_un SocketAddress(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  memcpy(address.sun_path, path.data(), std::min(path.size(), sizeof(address.sun_path) - 1));
  return address;
}

// Two servers that find the same stale file must not both replace it: whoever holds the folder's lock
// decides.
absl::StatusOr<UniqueFd> LockFolder(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  UniqueFd lock(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock) return Failed(path, absl::StrCat("its folder '", folder, "' cannot be opened"));
  const absl::Time deadline = absl::Now() + kLockTimeout;
  while (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return Failed(path, "its folder cannot be locked");
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("socket '", path, "': another process has held the lock on its folder for ",
                       absl::FormatDuration(kLockTimeout)));
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  return lock;
}

absl::StatusOr<UniqueFd> NewSocket(const std::string& path, int flags = 0) {
  UniqueFd made(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
  if (!made) return Failed(path, "no socket could be made");
  return made;
}

// OK once nothing is at `path`.
absl::Status RemoveStale(const std::string& path) {
  struct stat facts;
  if (lstat(path.c_str(), &facts) != 0) {
    return errno == ENOENT ? absl::OkStatus() : Failed(path, "it cannot be examined");
  }
  if (!S_ISSOCK(facts.st_mode)) {
    return absl::AlreadyExistsError(absl::StrCat(
        "socket '", path, "': a file that is no socket is there; choose another path or remove it"));
  }
  absl::StatusOr<UniqueFd> probe = NewSocket(path, SOCK_NONBLOCK);
  if (!probe.ok()) return probe.status();
  const sockaddr_un address = SocketAddress(path);
  if (connect(probe->get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno == EAGAIN) {  // EAGAIN: its backlog is full, so there is one.
    return absl::AlreadyExistsError(absl::StrCat(
        "socket '", path, "': another server is listening there; stop it or choose another path"));
  }
  if (errno != ECONNREFUSED) return Failed(path, "whether a server is listening there cannot be told");
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return Failed(path, "a dead server's socket is there and cannot be removed");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UnixSocketFile> UnixSocketFile::Listen(const std::string& path, mode_t mode, int backlog) {
  absl::StatusOr<UniqueFd> lock = LockFolder(path);
  if (!lock.ok()) return lock.status();
  if (absl::Status status = RemoveStale(path); !status.ok()) return status;
  absl::StatusOr<UniqueFd> socket = NewSocket(path);
  if (!socket.ok()) return socket.status();

  // Linux gives the file the mode of the unbound socket, less the umask: never more than `mode`, not even
  // between bind() and chmod().
  if (fchmod(socket->get(), mode) != 0) return Failed(path, "its mode cannot be set");
  const sockaddr_un address = SocketAddress(path);
  if (bind(socket->get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Failed(path, "bind");
  }
  UnixSocketFile file;
  struct stat facts;
  if (lstat(path.c_str(), &facts) != 0) return Failed(path, "it vanished");
  file.path_ = path;
  file.device_ = facts.st_dev;
  file.inode_ = facts.st_ino;
  if (chmod(path.c_str(), mode) != 0) return Failed(path, "its mode cannot be set");
  if (listen(socket->get(), backlog) != 0) return Failed(path, "listen");
  file.socket_ = *std::move(socket);
  return file;
}

UnixSocketFile::UnixSocketFile(UnixSocketFile&& other) noexcept
    : socket_(std::move(other.socket_)),
      path_(std::exchange(other.path_, {})),
      device_(other.device_),
      inode_(other.inode_) {}

void UnixSocketFile::Remove() {
  if (path_.empty()) return;
  struct stat facts;
  if (lstat(path_.c_str(), &facts) == 0 && facts.st_dev == device_ && facts.st_ino == inode_) {
    unlink(path_.c_str());
  }
  path_.clear();
}

}  // namespace berth::nbd
