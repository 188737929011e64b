#include "nbd/capabilities.h"

#include "nbd/wire.h"

namespace berth::nbd {

uint16_t TransmissionFlags(const Export& served, ReplyStyle reply_style, bool has_contexts) {
  const BlockTraits& traits = served.device->traits();
  uint16_t flags = kFlagHasFlags | kFlagSendFlush | kFlagSendFua | kFlagSendCache;
  if (traits.rotational) flags |= kFlagRotational;
  if (reply_style != ReplyStyle::kSimple) flags |= kFlagSendDf;
  if (reply_style == ReplyStyle::kExtended && has_contexts) flags |= kFlagBlockStatusPayload;
  if (served.multi_connection && traits.flush_covers_all_channels) flags |= kFlagCanMultiConn;
  if (served.read_only || traits.read_only) return flags | kFlagReadOnly;
  flags |= kFlagSendWriteZeroes;
  if (traits.can_discard) flags |= kFlagSendTrim;
  if (traits.resizable && served.resize != nullptr) flags |= kFlagSendResize;
  if (traits.fast_zero) flags |= kFlagSendFastZero;
  return flags;
}

uint64_t ServedSize(const Export& served, const BlockSizes& sizes) {
  const uint64_t size = served.device->size();
  return size - size % sizes.minimum;
}

}  // namespace berth::nbd
