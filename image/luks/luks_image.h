// LUKS images as devices: opening one with its secret, and making one.
#ifndef BERTH_IMAGE_LUKS_LUKS_IMAGE_H_
#define BERTH_IMAGE_LUKS_LUKS_IMAGE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "image/block/block_device.h"
#include "image/luks/key_slots.h"
#include "image/luks/luks_header.h"
#include "image/luks/sector_cipher.h"
#include "image/secret/secret.h"

namespace berth::luks {

// Where a header lies, and how many bytes there are for it, its key material, and the payload where it is in
// the same place.
struct HeaderPlace {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// Errors as DecodeHeader(). Blocks; not on a reactor's thread, which is true of everything here.
absl::StatusOr<Header> ReadHeader(BlockDevice& device, const HeaderPlace& place);

// The cipher of the disk whose header lies there. Errors as DecodeHeader() and Unlock().
absl::StatusOr<std::shared_ptr<const SectorCipher>> OpenCipher(BlockDevice& device, const HeaderPlace& place,
                                                               const Secret& secret,
                                                               absl::Duration timeout = kUnlockTimeout);

// The decrypted disk of a raw LUKS image. INVALID_ARGUMENT, beside the errors of OpenCipher(), where there is
// nothing behind the header.
absl::StatusOr<std::shared_ptr<BlockDevice>> OpenLuksImage(std::shared_ptr<BlockDevice> file,
                                                           const Secret& secret);

// Of a new image; what is empty or zero is qemu's default.
struct CreateOptions {
  std::string cipher_algorithm = {};  // "aes-256", "aes-128", "aes-192".
  std::string cipher_mode = {};       // "xts", "cbc", "ecb".
  std::string iv_generator = {};      // "plain64", "plain", "essiv" (with sha256).
  std::string hash = {};              // "sha256" and the others of FindHash().
  absl::Duration iteration_time = absl::ZeroDuration();
};

inline constexpr absl::Duration kDefaultIterationTime = absl::Seconds(2);
inline constexpr absl::Duration kMinIterationTime = absl::Milliseconds(10);
inline constexpr absl::Duration kMaxIterationTime = absl::Seconds(10);

// A new disk's header with its key material: what is to be written at the start of the file, up to the
// payload. The master key is random, and the secret opens slot 0. INVALID_ARGUMENT or UNIMPLEMENTED names an
// option that is not possible. Computes for somewhat longer than the iteration time.
absl::StatusOr<std::vector<uint8_t>> MakeHeader(const CreateOptions& options, const Secret& secret);

}  // namespace berth::luks

#endif  // BERTH_IMAGE_LUKS_LUKS_IMAGE_H_
