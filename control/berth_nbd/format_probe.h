// ProbeFormat: which image format bytes look like.
#ifndef BERTH_CONTROL_BERTH_NBD_FORMAT_PROBE_H_
#define BERTH_CONTROL_BERTH_NBD_FORMAT_PROBE_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace berth::control {

// Every format below shows itself in them.
inline constexpr size_t kProbedBytes = 512;

// "qcow2", or another format that some program would take the image for; empty where nothing is known of the
// bytes, and the image is raw. `head` is the image's first kProbedBytes, or all of it. Pure.
absl::string_view ProbeFormat(absl::Span<const uint8_t> head);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_FORMAT_PROBE_H_
