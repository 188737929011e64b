// How an error reaches the caller: a line on standard error, and an exit code.
#ifndef BERTH_CONTROL_BERTH_NBD_REPORT_H_
#define BERTH_CONTROL_BERTH_NBD_REPORT_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace berth::control {

// One line: `berth-nbd: what is wrong`, or {"error": {"code": …, "message": …}}. Bytes that a terminal must
// not see are escaped. `program` may have a path.
void Report(absl::string_view program, bool json, const absl::Status& error);

// Of -d: 3 where nothing is connected, 4 where the device is in use, 5 without permission, else 1.
int DetachExitCode(const absl::Status& error);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_REPORT_H_
