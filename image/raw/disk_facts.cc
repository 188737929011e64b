#include "image/raw/disk_facts.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace berth {
namespace {

// A number from the disk's request queue, or from its whole disk's where `device` is a partition; 0 where it
// is not told.
uint64_t QueueNumber(dev_t device, const char* name) {
  const std::string base = absl::StrCat("/sys/dev/block/", major(device), ":", minor(device));
  for (const char* queue : {"/queue/", "/../queue/"}) {
    std::ifstream file(absl::StrCat(base, queue, name));
    uint64_t number = 0;
    if (file >> number) return number;
  }
  return 0;
}

}  // namespace

DiskFacts ReadDiskFacts(int fd) {
  DiskFacts facts;
  struct stat info;
  if (fstat(fd, &info) != 0) return facts;
  facts.is_block_device = S_ISBLK(info.st_mode);
  const dev_t device = facts.is_block_device ? info.st_rdev : info.st_dev;
  facts.rotational = QueueNumber(device, "rotational") != 0;
  if (!facts.is_block_device) return facts;
  facts.can_discard = QueueNumber(device, "discard_max_bytes") != 0;
  facts.can_write_zeroes = QueueNumber(device, "write_zeroes_max_bytes") != 0;
  int block_size = 0;
  if (ioctl(fd, BLKSSZGET, &block_size) == 0 && block_size > 0) {
    facts.block_size = static_cast<uint32_t>(block_size);
  }
  return facts;
}

DirectAlignment ReadDirectAlignment(int fd) {
  DirectAlignment alignment;
  struct statx info = {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 && (info.stx_mask & STATX_DIOALIGN) != 0 &&
      info.stx_dio_offset_align != 0) {
    alignment.memory = info.stx_dio_mem_align;
    alignment.offset = info.stx_dio_offset_align;
    return alignment;
  }
  // Kernels before 6.1 do not tell. A page suits every file; a disk tells its block.
  struct stat type;
  if (fstat(fd, &type) == 0 && S_ISBLK(type.st_mode)) {
    alignment.memory = alignment.offset = ReadDiskFacts(fd).block_size;
  }
  return alignment;
}

}  // namespace berth
