#include "control/export_resize.h"

#include "absl/strings/str_cat.h"
#include "control/image_error.h"
#include "control/log.h"
#include "control/status_details.h"

namespace berth::control {

absl::Status ResizeExport(const std::string& name, const std::string& path, uint64_t size, bool allow_shrink,
                          BlockDevice& device,
                          absl::FunctionRef<absl::Status(uint64_t size)> resize_devices) {
  const uint64_t before = device.size();
  if (!device.traits().resizable && size != before) {
    return FailedCondition(
        "NOT_RESIZABLE", name,
        absl::StrCat("export ", Quoted(name),
                     " cannot be resized: it is read-only, a slice of fixed length, or its "
                     "image cannot"));
  }
  if (size < before && !allow_shrink) {
    return FailedCondition("WOULD_SHRINK", name,
                           absl::StrCat("export ", Quoted(name), " has ", before, " bytes; to cut it to ",
                                        size, " and lose what lies behind, set allow_shrink"));
  }
  if (size < before) {
    if (absl::Status status = resize_devices(size); !status.ok()) return status;
  }
  if (size != before) {
    if (absl::Status status = device.Resize(size); !status.ok()) {
      if (const absl::Status undone = resize_devices(device.size()); !undone.ok()) {
        Log(LogLevel::kError, "device smaller than its export",
            {{"export", name}, {"error", std::string(undone.message())}});
      }
      return DescribeImageError(status, path, "size_bytes");
    }
  }
  // After a shrink too, for what was attached meanwhile.
  return resize_devices(size);
}

}  // namespace berth::control
