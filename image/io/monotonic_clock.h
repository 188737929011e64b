// The clock that waits are measured by.
#ifndef BERTH_IMAGE_IO_MONOTONIC_CLOCK_H_
#define BERTH_IMAGE_IO_MONOTONIC_CLOCK_H_

#include <cstdint>
#include <ctime>

namespace berth {

// Nanoseconds of CLOCK_MONOTONIC: never goes back, and stands still while the machine is suspended.
inline int64_t MonotonicNanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace berth

#endif  // BERTH_IMAGE_IO_MONOTONIC_CLOCK_H_
