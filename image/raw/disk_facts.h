// What the kernel says about the disk below an image.
#ifndef BERTH_IMAGE_RAW_DISK_FACTS_H_
#define BERTH_IMAGE_RAW_DISK_FACTS_H_

#include <cstdint>

#include "image/raw/direct_file.h"

namespace berth {

struct DiskFacts {
  bool is_block_device = false;
  bool rotational = false;        // False where it is not known.
  bool can_discard = false;       // Of a block device.
  bool can_write_zeroes = false;  // Of a block device: by a command of its own.
  uint32_t block_size = 512;      // Of a block device: its logical block.
};

// Of the open file or block device `fd`. May block.
DiskFacts ReadDiskFacts(int fd);

// What O_DIRECT asks for on `fd`.
DirectAlignment ReadDirectAlignment(int fd);

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_DISK_FACTS_H_
