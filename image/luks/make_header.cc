#include <openssl/rand.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "image/luks/key_derivation.h"
#include "image/luks/luks_image.h"

namespace berth::luks {
namespace {

// Key material begins on such boundaries, behind the header, as every program has it.
constexpr uint64_t kAlignment = 4096;
constexpr uint32_t kMinIterations = 1000;
// The digest of the master key, which has no need of it, takes an eighth of the time that a slot does.
constexpr int kDigestPart = 8;

uint32_t Sectors(uint64_t bytes) {
  return static_cast<uint32_t>((bytes + kAlignment - 1) / kAlignment * kAlignment / kSectorBytes);
}

const std::string& OrDefault(const std::string& given, const std::string& otherwise) {
  return given.empty() ? otherwise : given;
}

absl::StatusOr<std::string> NewUuid() {
  uint8_t bytes[16];
  if (RAND_bytes(bytes, sizeof(bytes)) != 1) {
    return absl::InternalError("the cryptographic library has no random numbers");
  }
  // Version 4, variant 1 (RFC 9562).
  bytes[6] = static_cast<uint8_t>((bytes[6] & 0x0f) | 0x40);
  bytes[8] = static_cast<uint8_t>((bytes[8] & 0x3f) | 0x80);
  std::string text;
  for (size_t i = 0; i < sizeof(bytes); ++i) {
    absl::StrAppend(&text, i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                    absl::Hex(bytes[i], absl::kZeroPad2));
  }
  return text;
}

absl::StatusOr<Header> Choose(const CreateOptions& options) {
  Header header;
  const std::string algorithm = OrDefault(options.cipher_algorithm, "aes-256");
  const std::string mode = OrDefault(options.cipher_mode, "xts");
  std::string generator = OrDefault(options.iv_generator, "plain64");
  if (generator == "essiv") generator = "essiv:sha256";
  if (algorithm != "aes-128" && algorithm != "aes-192" && algorithm != "aes-256") {
    return absl::UnimplementedError(absl::StrCat("the cipher algorithm \"", algorithm,
                                                 "\" is not supported; aes-128, aes-192 and aes-256 are"));
  }
  header.cipher_name = "aes";
  header.cipher_mode = absl::StrCat(mode, "-", generator);
  header.key_bytes = algorithm == "aes-128" ? 16 : algorithm == "aes-192" ? 24 : 32;
  if (mode == "xts") header.key_bytes *= 2;
  header.hash = OrDefault(options.hash, "sha256");
  absl::Status status = SectorCipher::Check(header.cipher_name, header.cipher_mode, header.key_bytes);
  if (status.ok()) status = FindHash(header.hash).status();
  if (!status.ok()) return status;
  return header;
}

absl::StatusOr<Secret> NewKey(size_t bytes) {
  std::string random(bytes, '\0');
  const bool made = RAND_bytes(reinterpret_cast<uint8_t*>(random.data()), static_cast<int>(bytes)) == 1;
  absl::StatusOr<Secret> key = Secret::FromBytes(random);
  WipeString(&random);
  if (!made) return absl::InternalError("the cryptographic library has no random numbers");
  return key;
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> MakeHeader(const CreateOptions& options, const Secret& secret) {
  if (secret.empty()) return SecretNeeded();
  absl::StatusOr<Header> header = Choose(options);
  if (!header.ok()) return header.status();
  const absl::Duration time =
      options.iteration_time == absl::ZeroDuration() ? kDefaultIterationTime : options.iteration_time;
  if (time < kMinIterationTime || time > kMaxIterationTime) {
    return absl::InvalidArgumentError(absl::StrCat("the iteration time is ", absl::FormatDuration(time),
                                                   "; it must be ", absl::FormatDuration(kMinIterationTime),
                                                   " to ", absl::FormatDuration(kMaxIterationTime)));
  }
  const EVP_MD* const hash = *FindHash(header->hash);
  const auto iterations = IterationsFor(hash, header->key_bytes, time, kMinIterations);
  const auto digest_iterations = IterationsFor(hash, kDigestBytes, time / kDigestPart, kMinIterations);
  if (!iterations.ok()) return iterations.status();
  if (!digest_iterations.ok()) return digest_iterations.status();
  header->digest_iterations = *digest_iterations;
  uint32_t sector = Sectors(kHeaderBytes);
  for (KeySlot& slot : header->slots) {
    slot.stripes = kStripes;
    slot.material_sector = sector;
    sector += Sectors(MaterialBytes(header->key_bytes, kStripes));
  }
  header->slots[0].iterations = *iterations;
  header->payload_sector = sector;
  absl::StatusOr<std::string> uuid = NewUuid();
  if (!uuid.ok()) return uuid.status();
  header->uuid = *std::move(uuid);
  const absl::StatusOr<Secret> key = NewKey(header->key_bytes);
  if (!key.ok()) return key.status();
  const absl::StatusOr<std::vector<uint8_t>> material = FillSlot(*key, secret, 0, &*header);
  if (!material.ok()) return material.status();
  std::vector<uint8_t> bytes(header->payload_offset());
  const auto encoded = EncodeHeader(*header);
  memcpy(bytes.data(), encoded.data(), encoded.size());
  memcpy(&bytes[uint64_t{header->slots[0].material_sector} * kSectorBytes], material->data(),
         material->size());
  return bytes;
}

}  // namespace berth::luks
