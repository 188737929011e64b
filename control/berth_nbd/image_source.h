// OpenServedImage: from the command line to the device that clients are served.
#ifndef BERTH_CONTROL_BERTH_NBD_IMAGE_SOURCE_H_
#define BERTH_CONTROL_BERTH_NBD_IMAGE_SOURCE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "control/berth_nbd/command_line.h"
#include "control/berth_nbd/objects.h"
#include "control/berth_nbd/served_device.h"
#include "image/io/reactor.h"

namespace berth::control {

struct ServedImage {
  std::shared_ptr<ServedDevice> device;
  std::string warning;  // For the one who started the program; one line, or empty.
};

// Opens the image, and over it what the options ask for: a temporary overlay, an offset or a partition,
// detection of zeroes. `reactor` does the reading that this needs; not on its thread. Errors name the file.
absl::StatusOr<ServedImage> OpenServedImage(const CommandLine& line, const Objects& objects,
                                            Reactor& reactor);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_IMAGE_SOURCE_H_
