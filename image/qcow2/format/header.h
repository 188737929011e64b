// The qcow2 header: bytes to fields and back. Pure; no I/O.
//
// The format is docs/interop/qcow2 in qemu's source; the names in quotes below are its sections and fields.
// Everything that DecodeHeader() returns is checked: sizes are within the bounds below, tables lie inside the
// file and apart from each other, and no feature is set that is not understood. What is behind it may rely on
// that.
#ifndef BERTH_IMAGE_QCOW2_FORMAT_HEADER_H_
#define BERTH_IMAGE_QCOW2_FORMAT_HEADER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace berth::qcow2 {

inline constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
inline constexpr uint32_t kHeaderBytesV2 = 72;
inline constexpr uint32_t kHeaderBytesV3 = 104;  // At least; through "header_length".
inline constexpr uint32_t kMinClusterBits = 9;
inline constexpr uint32_t kMaxClusterBits = 21;
inline constexpr uint32_t kMinExtendedL2ClusterBits = 14;
inline constexpr uint64_t kMaxL1Bytes = uint64_t{32} << 20;
inline constexpr uint64_t kMaxRefcountTableBytes = uint64_t{8} << 20;
inline constexpr uint32_t kMaxSnapshots = 65'536;
inline constexpr uint32_t kMaxBackingNameBytes = 1023;

// Bits of "incompatible_features".
inline constexpr uint64_t kDirty = 1 << 0;
inline constexpr uint64_t kCorrupt = 1 << 1;
inline constexpr uint64_t kExternalDataFile = 1 << 2;
inline constexpr uint64_t kCompressionType = 1 << 3;
inline constexpr uint64_t kExtendedL2 = 1 << 4;
inline constexpr uint64_t kKnownIncompatible =
    kDirty | kCorrupt | kExternalDataFile | kCompressionType | kExtendedL2;
// Of "compatible_features".
inline constexpr uint64_t kLazyRefcounts = 1 << 0;
// Of "autoclear_features".
inline constexpr uint64_t kBitmapsConsistent = 1 << 0;
inline constexpr uint64_t kRawExternalData = 1 << 1;

enum class CryptMethod : uint32_t { kNone = 0, kAes = 1, kLuks = 2 };
enum class CompressionType : uint8_t { kDeflate = 0, kZstd = 1 };

// An entry of the "Feature name table".
struct FeatureName {
  uint8_t type = 0;  // 0 incompatible, 1 compatible, 2 autoclear.
  uint8_t bit = 0;
  std::string name;
  bool operator==(const FeatureName&) const = default;
};

// "Bitmaps extension".
struct BitmapsExtension {
  uint32_t count = 0;
  uint64_t directory_size = 0;  // Bytes.
  uint64_t directory_offset = 0;
  bool operator==(const BitmapsExtension&) const = default;
};

// "Full disk encryption header pointer".
struct EncryptionHeader {
  uint64_t offset = 0;
  uint64_t length = 0;  // Bytes.
  bool operator==(const EncryptionHeader&) const = default;
};

// One that is not understood: kept as it is when the header is rewritten.
struct UnknownExtension {
  uint32_t type = 0;
  std::vector<uint8_t> data;
  bool operator==(const UnknownExtension&) const = default;
};

struct Header {
  uint32_t version = 3;
  uint32_t cluster_bits = 16;
  uint64_t size = 0;  // Of the virtual disk, in bytes.
  CryptMethod crypt_method = CryptMethod::kNone;
  uint32_t l1_size = 0;  // Entries.
  uint64_t l1_table_offset = 0;
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  uint32_t snapshot_count = 0;
  uint64_t snapshots_offset = 0;
  uint64_t incompatible_features = 0;
  uint64_t compatible_features = 0;
  uint64_t autoclear_features = 0;
  uint32_t refcount_order = 4;
  CompressionType compression_type = CompressionType::kDeflate;
  // What follows "compression_type" in the header, kept as it is.
  std::vector<uint8_t> additional_fields;

  // Empty where there is no backing file.
  std::string backing_file;
  std::optional<std::string> backing_format;
  std::optional<std::string> data_file;
  std::vector<FeatureName> feature_names;
  std::optional<BitmapsExtension> bitmaps;
  std::optional<EncryptionHeader> encryption;
  std::vector<UnknownExtension> unknown_extensions;

  bool operator==(const Header&) const = default;

  bool has_data_file() const { return (incompatible_features & kExternalDataFile) != 0; }
  bool extended_l2() const { return (incompatible_features & kExtendedL2) != 0; }
  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  uint64_t l2_entry_bytes() const { return extended_l2() ? 16 : 8; }
  // Guest bytes that one L2 table describes.
  uint64_t l2_coverage() const { return (cluster_size() / l2_entry_bytes()) << cluster_bits; }
};

// How many bytes DecodeHeader() needs of a file that begins with `start`, of which 24 suffice: its first
// cluster. INVALID_ARGUMENT where it is no qcow2 image.
absl::StatusOr<uint64_t> HeaderBytes(absl::Span<const uint8_t> start);

// `first_cluster` is the first cluster of a file of `file_size` bytes, or all of a shorter one.
//
// INVALID_ARGUMENT names the field, its value and the bound; UNIMPLEMENTED an incompatible feature that is
// not known, by the name that the image has for it.
absl::StatusOr<Header> DecodeHeader(absl::Span<const uint8_t> first_cluster, uint64_t file_size);

// The bytes from the start of the file up to the end of the backing file's name, to be written over the first
// cluster. INVALID_ARGUMENT where they do not fit in it.
absl::StatusOr<std::vector<uint8_t>> EncodeHeader(const Header& header);

// The autoclear bits that stay when the image is opened by a writer that keeps up the features in
// `maintained`; the others have to be cleared before the first change.
constexpr uint64_t AutoclearForWriting(uint64_t autoclear_features, uint64_t maintained) {
  return autoclear_features & maintained;
}

// Checks an L1 table, the active one or a snapshot's: aligned, inside the file, apart from the header, and
// large enough for a disk of `disk_size` bytes. `what` is its name in the error.
absl::Status CheckL1Table(const Header& header, const std::string& what, uint64_t offset, uint64_t entries,
                          uint64_t disk_size, uint64_t file_size);

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_FORMAT_HEADER_H_
