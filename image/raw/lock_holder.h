// Who holds the locks on an image, for error messages.
#ifndef BERTH_IMAGE_RAW_LOCK_HOLDER_H_
#define BERTH_IMAGE_RAW_LOCK_HOLDER_H_

#include <string>

namespace berth {

// " (held by qemu-nbd, process 123)", or "" where nobody can be found. The kernel names no process for locks
// of open file descriptions, so this looks through the descriptors of the processes that we may see: at most
// some ten thousand of them, on the way to an error only. May block.
std::string DescribeHolders(int fd);

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_LOCK_HOLDER_H_
