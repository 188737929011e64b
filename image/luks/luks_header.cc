#include "image/luks/luks_header.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "image/io/big_endian.h"

namespace berth::luks {
namespace {

constexpr uint8_t kMagic[] = {'L', 'U', 'K', 'S', 0xba, 0xbe};
constexpr uint16_t kVersion = 1;
constexpr uint32_t kActive = 0x00ac71f3;
constexpr uint32_t kInactive = 0x0000dead;

// Where the fields are.
constexpr size_t kVersionAt = 6;
constexpr size_t kCipherNameAt = 8;
constexpr size_t kCipherModeAt = 40;
constexpr size_t kHashAt = 72;
constexpr size_t kNameBytes = 32;
constexpr size_t kPayloadAt = 104;
constexpr size_t kKeyBytesAt = 108;
constexpr size_t kDigestAt = 112;
constexpr size_t kDigestSaltAt = 132;
constexpr size_t kDigestIterationsAt = 164;
constexpr size_t kUuidAt = 168;
constexpr size_t kUuidBytes = 40;
constexpr size_t kSlotsAt = 208;
constexpr size_t kSlotBytes = 48;
// In a slot.
constexpr size_t kIterationsAt = 4;
constexpr size_t kSaltAt = 8;
constexpr size_t kMaterialAt = 40;
constexpr size_t kStripesAt = 44;

template <typename... Parts>
absl::Status Broken(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("broken LUKS header: ", parts...));
}

absl::Status DecodeName(absl::Span<const uint8_t> field, absl::string_view what, std::string* name) {
  const auto end = std::find(field.begin(), field.end(), 0);
  if (end == field.end()) return Broken(what, " has no end within its ", field.size(), " bytes");
  if (!std::all_of(field.begin(), end, absl::ascii_isprint)) return Broken(what, " is no printable text");
  name->assign(field.begin(), end);
  return absl::OkStatus();
}

void EncodeName(const std::string& name, uint8_t* field, size_t bytes) {
  memcpy(field, name.data(), std::min(name.size(), bytes - 1));
}

absl::Status CheckIterations(absl::string_view what, uint32_t iterations) {
  if (iterations >= 1 && iterations <= kMaxIterations) return absl::OkStatus();
  return Broken(what, " is ", iterations, "; it must be 1 to ", kMaxIterations);
}

absl::Status DecodeSlot(absl::Span<const uint8_t> bytes, size_t index, const Header& header, KeySlot* slot) {
  const std::string name = absl::StrCat("key slot ", index, ": ");
  const uint32_t active = Load32(bytes.data());
  if (active != kActive && active != kInactive) {
    return Broken(name, "active is ", active, "; it must be ", kActive, " or ", kInactive);
  }
  slot->active = active == kActive;
  slot->iterations = Load32(&bytes[kIterationsAt]);
  memcpy(slot->salt.data(), &bytes[kSaltAt], kSaltBytes);
  slot->material_sector = Load32(&bytes[kMaterialAt]);
  slot->stripes = Load32(&bytes[kStripesAt]);
  // What an unused slot has is used by nobody.
  if (!slot->active) return absl::OkStatus();
  if (absl::Status status = CheckIterations(absl::StrCat(name, "iterations"), slot->iterations);
      !status.ok()) {
    return status;
  }
  if (slot->stripes != kStripes) {
    return Broken(name, "stripes is ", slot->stripes, "; it must be ", kStripes);
  }
  const uint64_t offset = uint64_t{slot->material_sector} * kSectorBytes;
  const uint64_t bytes_of_it = MaterialBytes(header.key_bytes, slot->stripes);
  if (offset < kHeaderBytes || offset + bytes_of_it > header.payload_offset()) {
    return Broken(name, "key-material-offset is ", slot->material_sector, " sectors; the ", bytes_of_it,
                  " bytes there must lie between the header and the payload at sector ",
                  header.payload_sector);
  }
  return absl::OkStatus();
}

absl::Status CheckApart(const Header& header) {
  const uint64_t sectors = MaterialBytes(header.key_bytes, kStripes) / kSectorBytes;
  for (size_t i = 0; i < kKeySlots; ++i) {
    for (size_t j = i + 1; j < kKeySlots; ++j) {
      const KeySlot& a = header.slots[i];
      const KeySlot& b = header.slots[j];
      if (!a.active || !b.active) continue;
      if (a.material_sector < b.material_sector + sectors &&
          b.material_sector < a.material_sector + sectors) {
        return Broken("the key material of key slots ", i, " and ", j, " overlaps");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status DecodeFields(absl::Span<const uint8_t> bytes, uint64_t room, Header* header) {
  absl::Status status =
      DecodeName(bytes.subspan(kCipherNameAt, kNameBytes), "cipher-name", &header->cipher_name);
  if (status.ok()) {
    status = DecodeName(bytes.subspan(kCipherModeAt, kNameBytes), "cipher-mode", &header->cipher_mode);
  }
  if (status.ok()) status = DecodeName(bytes.subspan(kHashAt, kNameBytes), "hash-spec", &header->hash);
  if (status.ok()) status = DecodeName(bytes.subspan(kUuidAt, kUuidBytes), "uuid", &header->uuid);
  if (!status.ok()) return status;
  header->payload_sector = Load32(&bytes[kPayloadAt]);
  if (header->payload_offset() < kHeaderBytes || header->payload_offset() > room) {
    return Broken("payload-offset is ", header->payload_sector,
                  " sectors; the payload must lie behind the header and inside the ", room,
                  " bytes there are");
  }
  header->key_bytes = Load32(&bytes[kKeyBytesAt]);
  if (header->key_bytes < 1 || header->key_bytes > kMaxKeyBytes) {
    return Broken("key-bytes is ", header->key_bytes, "; it must be 1 to ", kMaxKeyBytes);
  }
  memcpy(header->digest.data(), &bytes[kDigestAt], kDigestBytes);
  memcpy(header->digest_salt.data(), &bytes[kDigestSaltAt], kSaltBytes);
  header->digest_iterations = Load32(&bytes[kDigestIterationsAt]);
  return CheckIterations("mk-digest-iter", header->digest_iterations);
}

}  // namespace

absl::StatusOr<Header> DecodeHeader(absl::Span<const uint8_t> bytes, uint64_t room) {
  if (bytes.size() < kHeaderBytes || memcmp(bytes.data(), kMagic, sizeof(kMagic)) != 0) {
    return absl::InvalidArgumentError("not a LUKS image: it does not begin with \"LUKS\\xba\\xbe\"");
  }
  if (const uint16_t version = Load16(&bytes[kVersionAt]); version != kVersion) {
    return absl::UnimplementedError(
        absl::StrCat("the image is LUKS version ", version,
                     ", which is not supported; version 1 is (cryptsetup convert --type luks1)"));
  }
  Header header;
  if (absl::Status status = DecodeFields(bytes, room, &header); !status.ok()) return status;
  for (size_t i = 0; i < kKeySlots; ++i) {
    const auto slot = bytes.subspan(kSlotsAt + i * kSlotBytes, kSlotBytes);
    if (absl::Status status = DecodeSlot(slot, i, header, &header.slots[i]); !status.ok()) return status;
  }
  if (absl::Status status = CheckApart(header); !status.ok()) return status;
  return header;
}

std::array<uint8_t, kHeaderBytes> EncodeHeader(const Header& header) {
  std::array<uint8_t, kHeaderBytes> bytes = {};
  memcpy(bytes.data(), kMagic, sizeof(kMagic));
  Store16(&bytes[kVersionAt], kVersion);
  EncodeName(header.cipher_name, &bytes[kCipherNameAt], kNameBytes);
  EncodeName(header.cipher_mode, &bytes[kCipherModeAt], kNameBytes);
  EncodeName(header.hash, &bytes[kHashAt], kNameBytes);
  Store32(&bytes[kPayloadAt], header.payload_sector);
  Store32(&bytes[kKeyBytesAt], header.key_bytes);
  memcpy(&bytes[kDigestAt], header.digest.data(), kDigestBytes);
  memcpy(&bytes[kDigestSaltAt], header.digest_salt.data(), kSaltBytes);
  Store32(&bytes[kDigestIterationsAt], header.digest_iterations);
  EncodeName(header.uuid, &bytes[kUuidAt], kUuidBytes);
  for (size_t i = 0; i < kKeySlots; ++i) {
    const KeySlot& slot = header.slots[i];
    uint8_t* const at = &bytes[kSlotsAt + i * kSlotBytes];
    Store32(at, slot.active ? kActive : kInactive);
    Store32(at + kIterationsAt, slot.iterations);
    memcpy(at + kSaltAt, slot.salt.data(), kSaltBytes);
    Store32(at + kMaterialAt, slot.material_sector);
    Store32(at + kStripesAt, slot.stripes);
  }
  return bytes;
}

}  // namespace berth::luks
