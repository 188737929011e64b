// SectorCipher: a disk's cipher: its key, its mode, and how each sector's initialisation vector is made.
//
// Names are those of the LUKS header: the cipher "aes"; the modes "xts-", "cbc-" or "ecb-" followed by
// "plain" (the sector's number in 32 bits), "plain64" or "essiv:sha256". A sector has 512 bytes.
//
// Thread-safe. A Worker belongs to one thread. Keys are wiped with their objects.
#ifndef BERTH_IMAGE_LUKS_SECTOR_CIPHER_H_
#define BERTH_IMAGE_LUKS_SECTOR_CIPHER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/secret/secret.h"

namespace berth::luks {

class SectorCipher {
 public:
  class Worker;

  // UNIMPLEMENTED names the cipher, mode or generator that is not known, INVALID_ARGUMENT a key size that the
  // cipher does not have.
  static absl::Status Check(const std::string& name, const std::string& mode, size_t key_bytes);

  // Errors as Check().
  static absl::StatusOr<std::shared_ptr<const SectorCipher>> Create(const std::string& name,
                                                                    const std::string& mode,
                                                                    const Secret& key);

  // INTERNAL where the library refuses.
  absl::StatusOr<std::unique_ptr<Worker>> NewWorker() const;

 private:
  enum class Mode : uint8_t { kXts, kCbc, kEcb };
  enum class Vector : uint8_t { kPlain, kPlain64, kEssivSha256 };
  struct Kind {
    Mode mode;
    Vector vector;
  };

  SectorCipher(Kind kind, Secret key) : kind_(kind), key_(std::move(key)) {}
  static absl::StatusOr<Kind> Parse(const std::string& name, const std::string& mode, size_t key_bytes);

  const Kind kind_;
  const Secret key_;
};

class SectorCipher::Worker {
 public:
  virtual ~Worker() = default;

  // In place; whole sectors, the first of which has the number `first_sector`. False where the library
  // failed: the content is then anything.
  virtual bool Encrypt(uint64_t first_sector, absl::Span<uint8_t> sectors) = 0;
  virtual bool Decrypt(uint64_t first_sector, absl::Span<uint8_t> sectors) = 0;
};

}  // namespace berth::luks

#endif  // BERTH_IMAGE_LUKS_SECTOR_CIPHER_H_
