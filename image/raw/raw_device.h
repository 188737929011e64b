// RawDevice: an image that is the bytes of a regular file or of a block device, and nothing else.
//
// Size: every byte of the file is the image's; a size that is no multiple of 512 is neither padded nor cut.
// An NBD client sees all of it; a kernel device, which counts in sectors, rounds down and hides the rest.
//
// Durability: a flush is fdatasync(2). When one fails, the kernel has dropped what it could not write, and a
// second call would claim success; so the failure is remembered and every later flush of this device fails
// with EIO. The way out is to close the image, look at the disk, and open it again.
//
// Thread: as BlockDevice. Lifetime: as BlockDevice; the process-wide pool for blocking calls outlives it.
#ifndef BERTH_IMAGE_RAW_RAW_DEVICE_H_
#define BERTH_IMAGE_RAW_RAW_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/block/image_modes.h"
#include "image/io/file.h"
#include "image/io/mutex.h"
#include "image/io/unique_fd.h"

namespace berth {

struct RawOptions {
  bool read_only = false;
  CacheMode cache = CacheMode::kWriteback;
  DiscardMode discard = DiscardMode::kUnmap;
  LockMode lock = LockMode::kExclusive;
};

class RawDevice final : public BlockDevice {
 public:
  // Opens an existing file or block device; symbolic links are followed (image/opener is where a path from
  // outside is checked). INVALID_ARGUMENT for an empty path and for what is no image (a directory, a fifo,
  // …), NOT_FOUND, PERMISSION_DENIED, and FAILED_PRECONDITION for a file that somebody else holds. May block.
  static absl::StatusOr<std::shared_ptr<RawDevice>> Open(const std::string& path, const RawOptions& options);

  // The same on an open descriptor, which was opened with OpenFlags(); `path` is its name in messages.
  static absl::StatusOr<std::shared_ptr<RawDevice>> Adopt(UniqueFd fd, const std::string& path,
                                                          const RawOptions& options);

  // open(2)'s flags for an image that is to be used with `options`.
  static int OpenFlags(const RawOptions& options);

  const BlockTraits& traits() const override { return traits_; }
  uint64_t size() const override { return size_.load(std::memory_order_acquire); }
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;
  absl::Status Resize(uint64_t new_size) override;

 private:
  friend class RawChannel;

  RawDevice(File file, const RawOptions& options) : options_(options), file_(std::move(file)) {}
  absl::Status Initialize();

  const RawOptions options_;
  const File file_;
  BlockTraits traits_;
  bool is_block_device_ = false;
  std::atomic<uint64_t> size_ = 0;
  std::atomic<bool> flush_failed_ = false;
  Mutex resize_mutex_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_RAW_DEVICE_H_
