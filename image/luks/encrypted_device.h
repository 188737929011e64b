// EncryptedDevice: what a cipher makes of a part of the device below it.
//
// Sectors of 512 bytes are encrypted, each with its number, which begins with 0 where the part begins. Of a
// raw LUKS image the part is the payload; under a qcow2 image's map it is all of the file, as its clusters
// are encrypted with the number of their place there.
//
// Reads decrypt in the caller's buffer. Writes encrypt in one of the channel's own, 64 KiB at a time.
// Requests that are no whole sectors read what is around them; while they write it back nobody else writes
// there.
//
// Zeroes are written, encrypted: a hole reads as anything. Extents are therefore all data. A discard is
// passed on, and shows whoever sees the file which sectors are not in use. Growing writes zeroes to the new
// space.
//
// Thread and lifetime: as BlockDevice.
#ifndef BERTH_IMAGE_LUKS_ENCRYPTED_DEVICE_H_
#define BERTH_IMAGE_LUKS_ENCRYPTED_DEVICE_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/luks/sector_cipher.h"
#include "image/raw/range_lock.h"

namespace berth::luks {

class EncryptedDevice final : public BlockDevice {
 public:
  // The part begins at byte `begin` of `next`, a multiple of 512, and goes on to its end, or to the last
  // whole sector before.
  EncryptedDevice(std::shared_ptr<BlockDevice> next, std::shared_ptr<const SectorCipher> cipher,
                  uint64_t begin);

  const BlockTraits& traits() const override { return traits_; }
  uint64_t size() const override;
  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;
  absl::Status Resize(uint64_t new_size) override;

 private:
  friend class EncryptedChannel;

  const std::shared_ptr<BlockDevice> next_;
  const std::shared_ptr<const SectorCipher> cipher_;
  const uint64_t begin_;
  BlockTraits traits_;
  RangeLock writes_;
};

}  // namespace berth::luks

#endif  // BERTH_IMAGE_LUKS_ENCRYPTED_DEVICE_H_
