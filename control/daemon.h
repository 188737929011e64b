// Daemon: everything that berthd is made of, put together.
#ifndef BERTH_CONTROL_DAEMON_H_
#define BERTH_CONTROL_DAEMON_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "control/config.h"

namespace berth::control {

// Ordinary threads.
class Daemon {
 public:
  // Takes the state directory, brings back exports and attachments, and serves. Errors say what to do.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const Config& config);
  virtual ~Daemon() = default;

  // Ends everything in order: no new calls and clients, running requests answered, images closed. Devices of
  // the kernel stay and wait for the next start, unless --detach-on-exit. Once.
  virtual absl::Status Stop() = 0;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_DAEMON_H_
