// File: a regular file or a block device, read and written from reactors.
//
// Thread-safe: a File holds no state but its descriptor and what was learned about the file system, and any
// number of reactors may use it at once. Lifetime: outlives the operations on it.
//
// What is in the page cache is served inline, by a plain system call on the reactor's thread, because a trip
// through the ring costs three times a cache hit. Only a call that cannot block is made so: RWF_NOWAIT where
// the file system knows it, or any call on a file system that lives in memory (tmpfs knows no RWF_NOWAIT).
// Everything else goes through the ring.
#ifndef BERTH_IMAGE_IO_FILE_H_
#define BERTH_IMAGE_IO_FILE_H_

#include <sys/stat.h>

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/io/io_result.h"
#include "image/io/reactor.h"
#include "image/io/task.h"
#include "image/io/unique_fd.h"

namespace berth {

class File {
 public:
  // Takes over `fd`, an open regular file or block device, and makes it a blocking one; `path` is its name in
  // messages.
  File(UniqueFd fd, std::string path);
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;

  // Opens `path` with open(2)'s `flags` (O_CLOEXEC is added). Never creates. The error names the path, and
  // what to do about it where that is known. A fifo, a socket, a directory or a character device is refused
  // without being opened.
  static absl::StatusOr<File> Open(const std::string& path, int flags);

  // Takes over `fd` after the same look at its type.
  static absl::StatusOr<File> Adopt(UniqueFd fd, std::string path);

  // INVALID_ARGUMENT where what `info` describes is neither a regular file nor a block device.
  static absl::Status CheckType(const struct stat& info, const std::string& path);

  // What Open() says when open(2) of `path` with `flags` failed with errno `error`.
  static absl::Status OpenError(int error, int flags, const std::string& path);

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }
  bool in_memory() const { return in_memory_; }

  // Bytes now, from the file system or the block device.
  absl::StatusOr<uint64_t> Size() const;

  // All of `out`, or an error. EIO where the file ends before `out` does: it was cut while it was open.
  Task<IoResult> Read(Reactor& reactor, uint64_t offset, absl::Span<uint8_t> out) const;

  // All of `data`, or an error. `rw_flags` is 0 or RWF_DSYNC.
  Task<IoResult> Write(Reactor& reactor, uint64_t offset, absl::Span<const uint8_t> data,
                       int rw_flags = 0) const;

  // fdatasync(2). Never on the reactor's thread, except where it cannot block.
  Task<IoResult> Sync(Reactor& reactor) const;

  // fallocate(2) with its `mode`; EOPNOTSUPP where the file system cannot. Off the reactor's thread as Sync
  // is.
  Task<IoResult> Allocate(Reactor& reactor, int mode, uint64_t offset, uint64_t length) const;

 private:
  Task<IoResult> ReadThroughRing(Reactor& reactor, uint64_t offset, absl::Span<uint8_t> out) const;
  Task<IoResult> WriteThroughRing(Reactor& reactor, uint64_t offset, absl::Span<const uint8_t> data,
                                  int rw_flags) const;

  UniqueFd fd_;
  std::string path_;
  bool in_memory_ = false;     // tmpfs or ramfs: nothing blocks.
  bool inline_reads_ = false;  // Worth trying before the ring.
  mutable std::atomic<bool> inline_writes_ =
      false;        // Until the file system refuses one for good, as ext4 does.
  int nowait_ = 0;  // RWF_NOWAIT, or 0 where nothing blocks.
};

}  // namespace berth

#endif  // BERTH_IMAGE_IO_FILE_H_
