// Opening below a directory without ever leaving it.
#ifndef BERTH_IMAGE_OPENER_CONFINED_OPEN_H_
#define BERTH_IMAGE_OPENER_CONFINED_OPEN_H_

#include <string>

#include "image/io/unique_fd.h"

namespace berth {

// Opens `path`, relative to `directory`, with open(2)'s `flags`, and follows no symbolic link anywhere in it:
// ELOOP or ENOTDIR in errno where there is one, EXDEV for a path that leads above `directory`. Never creates.
UniqueFd OpenConfined(int directory, const std::string& path, int flags);

// The same without openat2(2), component by component, for a kernel or a seccomp profile that lacks the call.
UniqueFd OpenConfinedByWalking(int directory, const std::string& path, int flags);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_CONFINED_OPEN_H_
