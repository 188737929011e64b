#include "image/opener/qcow2_encryption.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "image/luks/encrypted_device.h"
#include "image/luks/key_slots.h"
#include "image/luks/luks_image.h"

namespace berth {
namespace {

// The old AES's key is the secret itself: its first bytes, followed by zeroes where it is shorter.
constexpr size_t kOldKeyBytes = 16;

absl::StatusOr<std::shared_ptr<const luks::SectorCipher>> OldCipher(const Secret& secret) {
  if (secret.empty()) return luks::SecretNeeded();
  std::string padded(secret.bytes().substr(0, kOldKeyBytes));
  padded.resize(kOldKeyBytes, '\0');
  absl::StatusOr<Secret> key = Secret::FromBytes(padded);
  WipeString(&padded);
  if (!key.ok()) return key.status();
  return luks::SectorCipher::Create("aes", "cbc-plain64", *key);
}

}  // namespace

absl::StatusOr<Qcow2Encryption> OpenQcow2Encryption(const qcow2::Header& header,
                                                    const std::shared_ptr<BlockDevice>& image,
                                                    const std::shared_ptr<BlockDevice>& data,
                                                    const Secret& secret) {
  Qcow2Encryption encryption;
  if (header.crypt_method == qcow2::CryptMethod::kNone) return encryption;
  if (header.crypt_method == qcow2::CryptMethod::kAes) {
    absl::StatusOr<std::shared_ptr<const luks::SectorCipher>> cipher = OldCipher(secret);
    if (!cipher.ok()) return cipher.status();
    encryption.old_cipher = *std::move(cipher);
    return encryption;
  }
  if (!header.encryption.has_value()) {
    return absl::InvalidArgumentError(
        "broken qcow2 image: it is encrypted with LUKS and has no full disk encryption header pointer");
  }
  const luks::HeaderPlace place = {header.encryption->offset, header.encryption->length};
  absl::StatusOr<std::shared_ptr<const luks::SectorCipher>> cipher = luks::OpenCipher(*image, place, secret);
  if (!cipher.ok()) return cipher.status();
  encryption.decrypted =
      std::make_shared<luks::EncryptedDevice>(data != nullptr ? data : image, *std::move(cipher), 0);
  return encryption;
}

}  // namespace berth
