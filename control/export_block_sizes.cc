#include "control/export_block_sizes.h"

namespace berth::control {

nbd::BlockSizes ToBlockSizes(const v1::BlockSizes& sizes) {
  nbd::BlockSizes converted;
  if (sizes.minimum_bytes() != 0) converted.minimum = sizes.minimum_bytes();
  converted.preferred = sizes.preferred_bytes();
  if (sizes.maximum_payload_bytes() != 0) converted.maximum_payload = sizes.maximum_payload_bytes();
  converted.must_be_asked_for = sizes.must_be_asked_for();
  return converted;
}

void LeaveOutDefaults(v1::BlockSizes* sizes) {
  const nbd::BlockSizes defaults;
  if (sizes->minimum_bytes() == defaults.minimum) sizes->clear_minimum_bytes();
  if (sizes->maximum_payload_bytes() == defaults.maximum_payload) sizes->clear_maximum_payload_bytes();
}

}  // namespace berth::control
