// GuessedRawDevice: an image that is raw because nothing else was seen in it.
//
// Whoever writes to it could put another format's header into its first sector, so that the next one who
// guesses would take it for such an image, with backing files of the writer's choice. So what would look like
// one is refused with EPERM, and what changes a part of the sector only with EINVAL: nobody knows what would
// come out with the rest.
#ifndef BERTH_CONTROL_BERTH_NBD_GUESSED_RAW_H_
#define BERTH_CONTROL_BERTH_NBD_GUESSED_RAW_H_

#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "image/filter/forwarding.h"

namespace berth::control {

class GuessedRawDevice final : public ForwardingDevice {
 public:
  explicit GuessedRawDevice(std::shared_ptr<BlockDevice> next) : ForwardingDevice(std::move(next)) {}

  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_GUESSED_RAW_H_
