// Serve: the life of berth-nbd as a server, from opening the image to its end.
#ifndef BERTH_CONTROL_BERTH_NBD_SERVICE_H_
#define BERTH_CONTROL_BERTH_NBD_SERVICE_H_

#include <optional>

#include "absl/status/status.h"
#include "control/berth_nbd/background.h"
#include "control/berth_nbd/command_line.h"
#include "image/io/unique_fd.h"

namespace berth::control {

// Serves until the last client has left (unless `line` says otherwise), the kernel let its device go, or
// SIGTERM, SIGINT or SIGHUP; then flushes and closes the image. On the main thread, where no other has been
// started yet. `background`, which may be null, hears when clients can be served. An error is why nothing was
// served, or why the end was not clean.
absl::Status Serve(const CommandLine& line, std::optional<UniqueFd> activation, Background* background);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_SERVICE_H_
