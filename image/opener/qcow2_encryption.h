// What an encrypted qcow2 image needs to be read: its cipher, made with a secret.
#ifndef BERTH_IMAGE_OPENER_QCOW2_ENCRYPTION_H_
#define BERTH_IMAGE_OPENER_QCOW2_ENCRYPTION_H_

#include <memory>

#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/luks/sector_cipher.h"
#include "image/qcow2/format/header.h"
#include "image/secret/secret.h"

namespace berth {

// For Qcow2Files and Qcow2Options; both null of an image that is not encrypted.
struct Qcow2Encryption {
  std::shared_ptr<BlockDevice> decrypted;
  std::shared_ptr<const luks::SectorCipher> old_cipher;
};

// `data` is the external data file, or null. Errors as luks::OpenCipher(). The old AES has nothing that tells
// a wrong secret from the right one. May block, and computes for seconds.
absl::StatusOr<Qcow2Encryption> OpenQcow2Encryption(const qcow2::Header& header,
                                                    const std::shared_ptr<BlockDevice>& image,
                                                    const std::shared_ptr<BlockDevice>& data,
                                                    const Secret& secret);

}  // namespace berth

#endif  // BERTH_IMAGE_OPENER_QCOW2_ENCRYPTION_H_
