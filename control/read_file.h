// Reading a small file whole: keys, certificates, configuration.
#ifndef BERTH_CONTROL_READ_FILE_H_
#define BERTH_CONTROL_READ_FILE_H_

#include <string>

#include "absl/status/statusor.h"

namespace berth::control {

// At most 1 MiB; errors name the path. May block.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path);

}  // namespace berth::control

#endif  // BERTH_CONTROL_READ_FILE_H_
