// A resize of an export, with the devices of the kernel that show it.
#ifndef BERTH_CONTROL_EXPORT_RESIZE_H_
#define BERTH_CONTROL_EXPORT_RESIZE_H_

#include <cstdint>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "image/block/block_device.h"

namespace berth::control {

// `resize_devices` brings the kernel's devices to a size. It is called after the image grew, and before and
// after it shrinks, so that no device is larger than what is behind it; and where nothing is to change, as an
// earlier call may have come to the image and no further. Errors have the API's details and name the export
// and the image's `path`. One call at a time for an export; may block.
absl::Status ResizeExport(const std::string& name, const std::string& path, uint64_t size, bool allow_shrink,
                          BlockDevice& device, absl::FunctionRef<absl::Status(uint64_t size)> resize_devices);

}  // namespace berth::control

#endif  // BERTH_CONTROL_EXPORT_RESIZE_H_
