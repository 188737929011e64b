// The options of a new qcow2 image, as qemu-img create takes them after -o.
#ifndef BERTH_CONTROL_BERTHCTL_QCOW2_OPTIONS_H_
#define BERTH_CONTROL_BERTHCTL_QCOW2_OPTIONS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "berth/v1/images.pb.h"

namespace berth::berthctl {

// "NAME=VALUE[,NAME=VALUE...]"; a comma in a value is written twice. INVALID_ARGUMENT names what is not
// understood, and what would be. What the values may be together is berthd's matter.
absl::Status ParseQcow2Options(absl::string_view text, v1::Qcow2Options* options);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_QCOW2_OPTIONS_H_
