// UnixSocketFile: a listening Unix socket and the file by which clients find it.
#ifndef BERTH_NBD_UNIX_SOCKET_H_
#define BERTH_NBD_UNIX_SOCKET_H_

#include <sys/types.h>

#include <string>

#include "absl/status/statusor.h"
#include "image/io/unique_fd.h"

namespace berth::nbd {

// Not thread-safe. Lifetime: the file is removed by Remove() or the destructor, if it is still the one made
// here.
class UnixSocketFile {
 public:
  // Binds a stream socket to `path` (at most 107 bytes), with the permissions `mode` from its first moment
  // on, and listens. A socket file on which nobody listens, as a killed server leaves it, is replaced; one
  // that is in use, and a file of any other kind, is an error and stays. May block for moments: ordinary
  // threads only.
  static absl::StatusOr<UnixSocketFile> Listen(const std::string& path, mode_t mode, int backlog);

  UnixSocketFile(UnixSocketFile&& other) noexcept;
  UnixSocketFile& operator=(UnixSocketFile&&) = delete;
  ~UnixSocketFile() { Remove(); }

  UniqueFd TakeSocket() { return std::move(socket_); }
  void Remove();

 private:
  UnixSocketFile() = default;

  UniqueFd socket_;
  std::string path_;  // Empty once removed.
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_UNIX_SOCKET_H_
