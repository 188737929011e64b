// The LUKS version 1 header: bytes to fields and back. Pure; no I/O and no cryptography.
//
// The format is the "LUKS1 On-Disk Format Specification"; the names in quotes below are its fields. It lies
// at the start of an encrypted disk, or where a qcow2 image's encryption header pointer says. Everything that
// DecodeHeader() returns is checked: numbers are within the bounds below, and the key material of slots that
// are in use lies between the header and the payload, apart from each other's. Whether the cipher and the
// hash are known is sector_cipher's and key_derivation's to say.
#ifndef BERTH_IMAGE_LUKS_LUKS_HEADER_H_
#define BERTH_IMAGE_LUKS_LUKS_HEADER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace berth::luks {

inline constexpr size_t kHeaderBytes = 592;
inline constexpr size_t kKeySlots = 8;
inline constexpr size_t kDigestBytes = 20;
inline constexpr size_t kSaltBytes = 32;
inline constexpr uint32_t kSectorBytes = 512;
// What every program writes. Others would let an image ask for any amount of memory.
inline constexpr uint32_t kStripes = 4000;
inline constexpr uint32_t kMaxKeyBytes = 64;
// Some ten seconds of work for a slot: an image must not keep its opener busy for hours.
inline constexpr uint32_t kMaxIterations = uint32_t{1} << 25;

using Salt = std::array<uint8_t, kSaltBytes>;

struct KeySlot {
  bool active = false;
  uint32_t iterations = 0;
  Salt salt = {};
  uint32_t material_sector = 0;  // "key-material-offset".
  uint32_t stripes = 0;
  bool operator==(const KeySlot&) const = default;
};

struct Header {
  std::string cipher_name;  // "aes".
  std::string cipher_mode;  // "xts-plain64".
  std::string hash;         // "hash-spec".
  uint32_t payload_sector = 0;
  uint32_t key_bytes = 0;
  std::array<uint8_t, kDigestBytes> digest = {};  // Of the master key.
  Salt digest_salt = {};
  uint32_t digest_iterations = 0;
  std::string uuid;
  std::array<KeySlot, kKeySlots> slots = {};
  bool operator==(const Header&) const = default;

  uint64_t payload_offset() const { return uint64_t{payload_sector} * kSectorBytes; }
};

// Bytes of a slot's key material on the disk, whole sectors.
constexpr uint64_t MaterialBytes(uint32_t key_bytes, uint32_t stripes) {
  return (uint64_t{key_bytes} * stripes + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
}

// `bytes` are the first kHeaderBytes of a header, or all of a shorter file; `room` is how many bytes there
// are for header, key material and payload. INVALID_ARGUMENT names the field, its value and the bound;
// UNIMPLEMENTED another version.
absl::StatusOr<Header> DecodeHeader(absl::Span<const uint8_t> bytes, uint64_t room);

// Strings longer than their fields are cut.
std::array<uint8_t, kHeaderBytes> EncodeHeader(const Header& header);

}  // namespace berth::luks

#endif  // BERTH_IMAGE_LUKS_LUKS_HEADER_H_
