// Sizes as people write them.
#ifndef BERTH_CONTROL_BERTHCTL_SIZE_TEXT_H_
#define BERTH_CONTROL_BERTHCTL_SIZE_TEXT_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace berth::berthctl {

// "4096", "512M", "10G", "1MiB": K, M, G, T and P are powers of 1024, with or without "iB"; "KB", "MB", … are
// powers of 1000, as in the GNU tools. Letters of either case. INVALID_ARGUMENT for anything else and for
// more than 2^63 - 1.
absl::StatusOr<uint64_t> ParseSize(absl::string_view text);

// "0 B", "512 B", "10 GiB", "1.5 MiB".
std::string FormatSize(uint64_t bytes);
// "10 GiB (10737418240 bytes)", or "512 bytes".
std::string FormatExactSize(uint64_t bytes);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_SIZE_TEXT_H_
