#include "image/raw/file_space.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>

namespace berth {
namespace {

constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
constexpr int kZeroRange = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kXfsMagic = 0x58465342;  // linux/magic.h of Debian 12 lacks it.

// A disk may write the zeroes itself, so one call is kept to what takes about a second.
constexpr uint64_t kDiskChunk = uint64_t{128} << 20;

// Those that convert extents instead of writing. ZERO_RANGE cannot be probed without an effect.
bool KnownToZeroInPlace(int fd) {
  struct statfs info;
  if (fstatfs(fd, &info) != 0) return false;
  switch (static_cast<uint64_t>(info.f_type)) {
    case EXT4_SUPER_MAGIC:
    case kXfsMagic:
    case BTRFS_SUPER_MAGIC:
    case F2FS_SUPER_MAGIC:
      return true;
    default:
      return false;
  }
}

}  // namespace

FileSpace::FileSpace(const File& file, const DiskFacts& facts, bool writable, BlockingPool& pool)
    : file_(file), facts_(facts), pool_(pool) {
  if (!writable) return;
  if (facts_.is_block_device) {
    can_punch_ = facts_.can_write_zeroes;
    can_zero_in_place_ = facts_.can_write_zeroes;
  } else {
    Probe();
  }
}

void FileSpace::Probe() {
  const absl::StatusOr<uint64_t> size = file_.Size();
  if (!size.ok()) return;
  // Behind the end there is nothing to lose.
  const uint64_t behind = (*size + kPage - 1) & ~(kPage - 1);
  can_punch_ = fallocate(file_.fd(), kPunch, static_cast<off_t>(behind), kPage) == 0;
  can_zero_in_place_ = KnownToZeroInPlace(file_.fd());
}

Task<IoResult> FileSpace::Zero(Reactor& reactor, uint64_t offset, uint64_t length, bool may_unmap,
                               bool fast_only) {
  if (facts_.is_block_device) {
    co_return co_await ZeroDisk(reactor, offset, length, may_unmap, fast_only);
  }
  if (may_unmap && can_punch_) {
    const IoResult result = co_await file_.Allocate(reactor, kPunch, offset, length);
    if (result.error != EOPNOTSUPP) co_return result;
    can_punch_ = false;
  }
  if (may_know_zero_range_) {
    const IoResult result = co_await file_.Allocate(reactor, kZeroRange, offset, length);
    if (result.error != EOPNOTSUPP) co_return result;
    may_know_zero_range_ = false;
  }
  co_return IoResult::Error(ENOTSUP);
}

Task<IoResult> FileSpace::ZeroDisk(Reactor& reactor, uint64_t offset, uint64_t length, bool may_unmap,
                                   bool fast_only) {
  // fallocate of a disk fails rather than writes when it is asked to punch, and writes when it has to when it
  // is asked to zero.
  while (length > 0) {
    const uint64_t chunk = std::min(length, kDiskChunk);
    IoResult result = IoResult::Error(EOPNOTSUPP);
    if (may_unmap && can_punch_) {
      result = co_await file_.Allocate(reactor, kPunch, offset, chunk);
      if (result.error == EOPNOTSUPP) can_punch_ = false;
    }
    if (result.error == EOPNOTSUPP && (!fast_only || facts_.can_write_zeroes)) {
      result = co_await file_.Allocate(reactor, kZeroRange, offset, chunk);
    }
    if (!result.ok()) co_return result;
    offset += chunk;
    length -= chunk;
  }
  co_return IoResult::Ok();
}

Task<IoResult> FileSpace::Discard(Reactor& reactor, uint64_t offset, uint64_t length) {
  if (facts_.is_block_device) co_return co_await DiscardDisk(reactor, offset, length);
  if (!can_punch_) co_return IoResult::Ok();
  const IoResult result = co_await file_.Allocate(reactor, kPunch, offset, length);
  if (result.error != EOPNOTSUPP) co_return result;
  can_punch_ = false;
  co_return IoResult::Ok();
}

Task<IoResult> FileSpace::DiscardDisk(Reactor& reactor, uint64_t offset, uint64_t length) {
  const uint64_t block = facts_.block_size;
  const uint64_t begin = (offset + block - 1) / block * block;
  const uint64_t end = (offset + length) / block * block;
  if (!facts_.can_discard || begin >= end) co_return IoResult::Ok();
  const int fd = file_.fd();
  const auto discard = [fd, begin, end]() -> int {
    uint64_t range[2] = {begin, end - begin};
    return ioctl(fd, BLKDISCARD, range) == 0 ? 0 : errno;
  };
  const int error = co_await pool_.Run(reactor, discard);
  co_return error == 0 || error == EOPNOTSUPP ? IoResult::Ok() : IoResult::Error(error);
}

}  // namespace berth
