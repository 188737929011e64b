// Checking and repairing a qcow2 image that nobody has open for writing.
#ifndef BERTH_IMAGE_OPENER_QCOW2_CHECK_H_
#define BERTH_IMAGE_OPENER_QCOW2_CHECK_H_

#include <string>

#include "absl/status/statusor.h"
#include "image/io/progress.h"
#include "image/opener/image_roots.h"
#include "image/qcow2/check/check.h"

namespace berth {

// Errors as ImageRoots::OpenFile() and qcow2::CheckImage(); FAILED_PRECONDITION (reason IMAGE_LOCKED) where
// somebody has the image open for writing, or has it open at all and `repair` would change it. Blocks.
absl::StatusOr<qcow2::CheckResult> CheckQcow2Image(const ImageRoots& roots, const std::string& path,
                                                   qcow2::Repair repair, Progress& progress);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_QCOW2_CHECK_H_
