// What an image is, for people or as JSON.
#ifndef BERTH_CONTROL_BERTHCTL_IMAGE_TEXT_H_
#define BERTH_CONTROL_BERTHCTL_IMAGE_TEXT_H_

#include "berth/v1/images.pb.h"
#include "control/berthctl/console.h"

namespace berth::berthctl {

void PrintImage(Console& console, const v1::ImageInfo& info);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_IMAGE_TEXT_H_
