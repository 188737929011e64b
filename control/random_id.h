// Names that nobody else has.
#ifndef BERTH_CONTROL_RANDOM_ID_H_
#define BERTH_CONTROL_RANDOM_ID_H_

#include <string>

#include "absl/status/statusor.h"

namespace berth::control {

// 32 random hexadecimal digits, from the kernel.
absl::StatusOr<std::string> RandomId();

}  // namespace berth::control

#endif  // BERTH_CONTROL_RANDOM_ID_H_
