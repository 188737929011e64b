// RawDevice: an image that is the bytes of a regular file or of a block device, and nothing else.
//
// Size: every byte of the file is the image's; a size that is no multiple of 512 is neither padded nor cut.
// An NBD client sees all of it; a kernel device, which counts in sectors, rounds down and hides the rest.
//
// Durability: a flush is fdatasync(2). When one fails, the kernel has dropped what it could not write, and a
// second call would claim success; so the failure is remembered and every later flush of this device fails
// with EIO. The way out is to close the image, look at the disk, and open it again.
//
// Zeroes: a range becomes a hole where the request and the discard mode allow it, else its extents are marked
// as zero in place, else zeroes are written (tmpfs, asked to keep the space).
//
// Thread: as BlockDevice. Lifetime: as BlockDevice.
#ifndef BERTH_IMAGE_RAW_RAW_DEVICE_H_
#define BERTH_IMAGE_RAW_RAW_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/block/image_modes.h"
#include "image/io/blocking_pool.h"
#include "image/io/file.h"
#include "image/io/mutex.h"
#include "image/io/unique_fd.h"
#include "image/raw/direct_file.h"
#include "image/raw/disk_facts.h"
#include "image/raw/extent_cache.h"
#include "image/raw/file_space.h"
#include "image/raw/flush_group.h"

namespace berth {

struct RawOptions {
  bool read_only = false;
  CacheMode cache = CacheMode::kWriteback;
  DiscardMode discard = DiscardMode::kUnmap;
  LockMode lock = LockMode::kExclusive;
  // A file of 0 bytes is no error: other formats keep their data in such files until the first write.
  bool may_be_empty = false;
};

class RawDevice final : public BlockDevice {
 public:
  // Opens an existing file or block device; symbolic links are followed (image/opener is where a path from
  // outside is checked). INVALID_ARGUMENT for an empty path, for an empty file (unless `may_be_empty`) and
  // for what is no image (a directory, a fifo, …), NOT_FOUND, PERMISSION_DENIED, and FAILED_PRECONDITION
  // (reason IMAGE_LOCKED) for a file that somebody else holds. May block.
  static absl::StatusOr<std::shared_ptr<RawDevice>> Open(const std::string& path, const RawOptions& options);

  // The same on an open descriptor, which was opened with OpenFlags(); `path` is its name in messages.
  static absl::StatusOr<std::shared_ptr<RawDevice>> Adopt(UniqueFd fd, const std::string& path,
                                                          const RawOptions& options);

  // open(2)'s flags for an image that is to be used with `options`.
  static int OpenFlags(const RawOptions& options);

  // How it was opened.
  const RawOptions& options() const { return options_; }

  const BlockTraits& traits() const override { return traits_; }
  uint64_t size() const override { return size_.load(std::memory_order_acquire); }
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;

  // The new size is on disk when this returns. INVALID_ARGUMENT for 0 and for more than the file system can
  // hold.
  absl::Status Resize(uint64_t new_size) override;

 private:
  friend class RawChannel;

  RawDevice(File file, std::optional<File> cached, const DiskFacts& facts, uint64_t size,
            const RawOptions& options);
  static absl::StatusOr<std::shared_ptr<RawDevice>> Create(File file, const RawOptions& options);
  absl::Status ResizeFile(uint64_t new_size);
  // After a write that was under way while the file was cut: it may have made the file longer again.
  void CutAgain();

  const RawOptions options_;
  const File file_;
  // The file once more, without O_DIRECT: a descriptor that sees every failed write-back for itself
  // (FlushGroup), and writes what O_DIRECT cannot. None where neither is needed.
  const std::optional<File> cached_;
  const DiskFacts facts_;
  BlockTraits traits_;
  std::atomic<uint64_t> size_;
  std::optional<FlushGroup> flushes_;  // None where a flush does nothing.
  std::optional<DirectFile> direct_;   // With O_DIRECT.
  FileSpace space_;
  ExtentCache extents_;
  Mutex resize_mutex_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_RAW_DEVICE_H_
