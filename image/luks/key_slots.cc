#include "image/luks/key_slots.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include <array>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "image/block/error_reason.h"
#include "image/luks/anti_forensic.h"
#include "image/luks/key_derivation.h"
#include "image/luks/sector_cipher.h"

namespace berth::luks {
namespace {

using Digest = std::array<uint8_t, kDigestBytes>;

// Bytes that are wiped.
class Wiped {
 public:
  explicit Wiped(size_t size) : bytes_(size) {}
  Wiped(const Wiped&) = delete;
  Wiped& operator=(const Wiped&) = delete;
  ~Wiped() { WipeBytes(bytes_.data(), bytes_.size()); }

  absl::Span<uint8_t> span() { return absl::MakeSpan(bytes_); }
  absl::string_view text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }

 private:
  std::vector<uint8_t> bytes_;
};

absl::StatusOr<std::unique_ptr<SectorCipher::Worker>> WorkerWith(const Header& header, const Wiped& key) {
  absl::StatusOr<Secret> secret = Secret::FromBytes(key.text());
  if (!secret.ok()) return secret.status();
  auto cipher = SectorCipher::Create(header.cipher_name, header.cipher_mode, *secret);
  if (!cipher.ok()) return cipher.status();
  return (*cipher)->NewWorker();
}

absl::StatusOr<Digest> DigestOf(const EVP_MD* hash, const Header& header, absl::string_view key) {
  Digest digest;
  absl::Status status =
      DeriveKey(hash, key, header.digest_salt, header.digest_iterations, absl::MakeSpan(digest));
  if (!status.ok()) return status;
  return digest;
}

// What the secret makes of a slot: a key, which may be the wrong one.
absl::Status OpenSlot(const EVP_MD* hash, const Header& header, const KeySlot& slot, const Secret& secret,
                      MaterialReader read, Wiped* key) {
  Wiped slot_key(header.key_bytes);
  absl::Status status = DeriveKey(hash, secret.bytes(), slot.salt, slot.iterations, slot_key.span());
  if (!status.ok()) return status;
  auto worker = WorkerWith(header, slot_key);
  if (!worker.ok()) return worker.status();
  Wiped material(MaterialBytes(header.key_bytes, slot.stripes));
  status = read(uint64_t{slot.material_sector} * kSectorBytes, material.span());
  if (!status.ok()) return status;
  if (!(*worker)->Decrypt(0, material.span())) {
    return absl::InternalError("the cryptographic library cannot decrypt a key slot");
  }
  return MergeKey(hash, material.span().subspan(0, size_t{header.key_bytes} * slot.stripes), key->span());
}

}  // namespace

absl::Status SecretNeeded() {
  return WithReason(
      absl::FailedPreconditionError("the image is encrypted, and no secret was given to open it with"),
      kReasonSecretNeeded);
}

absl::StatusOr<Secret> Unlock(const Header& header, const Secret& secret, MaterialReader read,
                              absl::Time deadline) {
  const absl::StatusOr<const EVP_MD*> hash = FindHash(header.hash);
  if (!hash.ok()) return hash.status();
  absl::Status status = SectorCipher::Check(header.cipher_name, header.cipher_mode, header.key_bytes);
  if (!status.ok()) return status;
  if (secret.empty()) return SecretNeeded();
  for (const KeySlot& slot : header.slots) {
    if (!slot.active) continue;
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(
          "opening the encrypted image took too long: its key slots ask for very many iterations");
    }
    Wiped key(header.key_bytes);
    if (status = OpenSlot(*hash, header, slot, secret, read, &key); !status.ok()) return status;
    const absl::StatusOr<Digest> digest = DigestOf(*hash, header, key.text());
    if (!digest.ok()) return digest.status();
    if (CRYPTO_memcmp(digest->data(), header.digest.data(), kDigestBytes) == 0) {
      return Secret::FromBytes(key.text());
    }
  }
  return WithReason(absl::PermissionDeniedError("the secret does not open the encrypted image"),
                    kReasonWrongSecret);
}

absl::StatusOr<std::vector<uint8_t>> FillSlot(const Secret& key, const Secret& secret, size_t index,
                                              Header* header) {
  const absl::StatusOr<const EVP_MD*> hash = FindHash(header->hash);
  if (!hash.ok()) return hash.status();
  KeySlot& slot = header->slots[index];
  if (RAND_bytes(slot.salt.data(), kSaltBytes) != 1 ||
      RAND_bytes(header->digest_salt.data(), kSaltBytes) != 1) {
    return absl::InternalError("the cryptographic library has no random numbers");
  }
  const absl::StatusOr<Digest> digest = DigestOf(*hash, *header, key.bytes());
  if (!digest.ok()) return digest.status();
  header->digest = *digest;
  Wiped slot_key(header->key_bytes);
  absl::Status status = DeriveKey(*hash, secret.bytes(), slot.salt, slot.iterations, slot_key.span());
  if (!status.ok()) return status;
  auto worker = WorkerWith(*header, slot_key);
  if (!worker.ok()) return worker.status();
  std::vector<uint8_t> material(MaterialBytes(header->key_bytes, slot.stripes));
  const absl::Span<const uint8_t> key_bytes(reinterpret_cast<const uint8_t*>(key.bytes().data()),
                                            key.bytes().size());
  status = SplitKey(*hash, key_bytes, absl::MakeSpan(material).subspan(0, key_bytes.size() * slot.stripes));
  if (!status.ok()) return status;
  if (!(*worker)->Encrypt(0, absl::MakeSpan(material))) {
    return absl::InternalError("the cryptographic library cannot encrypt a key slot");
  }
  slot.active = true;
  return material;
}

}  // namespace berth::luks
