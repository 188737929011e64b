#include "image/qcow2/format/header.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/io/big_endian.h"
#include "image/qcow2/format/header_extension.h"
#include "image/qcow2/format/refcount_block.h"

namespace berth::qcow2 {
namespace {

constexpr uint64_t kMaxOffset = std::numeric_limits<int64_t>::max();

template <typename... Parts>
absl::Status Broken(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("broken qcow2 image: ", parts...));
}

struct Region {
  const char* name;
  uint64_t begin;
  uint64_t end;
};

// A table of `bytes` at `offset`: aligned, and inside the file.
absl::Status CheckTable(const Header& header, absl::string_view name, uint64_t offset, uint64_t bytes,
                        uint64_t file_size) {
  if (offset % header.cluster_size() != 0) {
    return Broken(name, " at offset ", offset, " does not begin on a cluster of ", header.cluster_size(),
                  " bytes");
  }
  if (offset == 0) return Broken(name, " at offset 0 lies over the header");
  if (offset > kMaxOffset || bytes > kMaxOffset - offset || offset + bytes > file_size) {
    return Broken(name, " at offset ", offset, " with ", bytes, " bytes ends behind the file, which has ",
                  file_size, " bytes");
  }
  return absl::OkStatus();
}

std::string NameOfFeature(const Header& header, uint8_t type, int bit) {
  for (const FeatureName& feature : header.feature_names) {
    if (feature.type == type && feature.bit == bit && !feature.name.empty()) {
      return absl::StrCat("\"", feature.name, "\" (bit ", bit, ")");
    }
  }
  return absl::StrCat("bit ", bit, ", for which the image has no name");
}

absl::Status CheckFeatures(const Header& header, uint8_t raw_compression_type) {
  const uint64_t unknown = header.incompatible_features & ~kKnownIncompatible;
  if (unknown != 0) {
    std::string names;
    for (int bit = 0; bit < 64; ++bit) {
      if ((unknown >> bit & 1) == 0) continue;
      absl::StrAppend(&names, names.empty() ? "" : ", ", NameOfFeature(header, 0, bit));
    }
    return absl::UnimplementedError(absl::StrCat(
        "the qcow2 image uses incompatible features that are not known here: ", names,
        "; open it with the program that made it, or convert it there to an image without them"));
  }
  const bool has_type = (header.incompatible_features & kCompressionType) != 0;
  if (has_type != (raw_compression_type != 0)) {
    return Broken("compression_type is ", raw_compression_type, " while its incompatible feature bit is ",
                  has_type ? "set" : "not set");
  }
  if (raw_compression_type > static_cast<uint8_t>(CompressionType::kZstd)) {
    return absl::UnimplementedError(absl::StrCat("the qcow2 image's compression_type is ",
                                                 raw_compression_type,
                                                 "; known are 0 (deflate) and 1 (zstd)"));
  }
  if (header.extended_l2() && header.cluster_bits < kMinExtendedL2ClusterBits) {
    return Broken("cluster_bits is ", header.cluster_bits, "; with extended L2 entries it is at least ",
                  kMinExtendedL2ClusterBits);
  }
  if ((header.autoclear_features & kRawExternalData) != 0 && !header.has_data_file()) {
    return Broken("autoclear_features has the raw external data bit, but there is no external data file");
  }
  if ((header.autoclear_features & kBitmapsConsistent) != 0 && !header.bitmaps.has_value()) {
    return Broken("autoclear_features has the bitmaps bit, but there is no bitmaps extension");
  }
  return absl::OkStatus();
}

absl::Status CheckTables(const Header& header, uint64_t file_size) {
  absl::Status status =
      CheckL1Table(header, "the L1 table", header.l1_table_offset, header.l1_size, header.size, file_size);
  if (!status.ok()) return status;
  const uint64_t refcount_bytes = uint64_t{header.refcount_table_clusters} << header.cluster_bits;
  if (header.refcount_table_clusters == 0 || refcount_bytes > kMaxRefcountTableBytes) {
    return Broken("refcount_table_clusters is ", header.refcount_table_clusters, ", which is ",
                  refcount_bytes, " bytes; possible are 1 to ", kMaxRefcountTableBytes, " bytes");
  }
  status = CheckTable(header, "the refcount table", header.refcount_table_offset, refcount_bytes, file_size);
  if (!status.ok()) return status;
  if (header.snapshot_count > kMaxSnapshots) {
    return Broken("nb_snapshots is ", header.snapshot_count, "; at most ", kMaxSnapshots, " are possible");
  }
  if (header.snapshot_count > 0) {
    status = CheckTable(header, "the snapshot table", header.snapshots_offset, 1, file_size);
    if (!status.ok()) return status;
  }
  if (header.bitmaps.has_value() && (header.autoclear_features & kBitmapsConsistent) != 0) {
    status = CheckTable(header, "the bitmap directory", header.bitmaps->directory_offset,
                        header.bitmaps->directory_size, file_size);
    if (!status.ok()) return status;
  }
  if (header.encryption.has_value()) {
    status = CheckTable(header, "the encryption header", header.encryption->offset, header.encryption->length,
                        file_size);
    if (!status.ok()) return status;
  }
  std::vector<Region> regions = {
      {"the L1 table", header.l1_table_offset, header.l1_table_offset + uint64_t{header.l1_size} * 8},
      {"the refcount table", header.refcount_table_offset, header.refcount_table_offset + refcount_bytes}};
  if (header.snapshot_count > 0) {
    regions.push_back({"the snapshot table", header.snapshots_offset, header.snapshots_offset + 1});
  }
  for (size_t i = 0; i < regions.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (regions[i].begin < regions[j].end && regions[j].begin < regions[i].end) {
        return Broken(regions[i].name, " at offset ", regions[i].begin, " lies over ", regions[j].name,
                      " at offset ", regions[j].begin);
      }
    }
  }
  return absl::OkStatus();
}

// "Additional fields (version 3 and higher)", and what the fields before them promise.
absl::Status DecodeVersion3(absl::Span<const uint8_t> bytes, Header* header, uint32_t* header_length,
                            uint8_t* compression_type) {
  if (bytes.size() < kHeaderBytesV3) {
    return Broken("the file has ", bytes.size(), " bytes, a header of version 3 at least ", kHeaderBytesV3);
  }
  header->incompatible_features = Load64(&bytes[72]);
  header->compatible_features = Load64(&bytes[80]);
  header->autoclear_features = Load64(&bytes[88]);
  header->refcount_order = Load32(&bytes[96]);
  if (header->refcount_order > kMaxRefcountOrder) {
    return Broken("refcount_order is ", header->refcount_order, "; at most ", kMaxRefcountOrder,
                  " is possible");
  }
  *header_length = Load32(&bytes[100]);
  if (*header_length < kHeaderBytesV3 || *header_length % 8 != 0 || *header_length > bytes.size()) {
    return Broken("header_length is ", *header_length, "; it is a multiple of 8, at least ", kHeaderBytesV3,
                  ", and inside the first cluster (", bytes.size(), " bytes)");
  }
  if (*header_length > kHeaderBytesV3) {
    *compression_type = bytes[kHeaderBytesV3];
    header->additional_fields.assign(bytes.begin() + kHeaderBytesV3 + 1, bytes.begin() + *header_length);
  }
  return absl::OkStatus();
}

absl::Status DecodeBackingFile(absl::Span<const uint8_t> bytes, uint32_t header_length, Header* header) {
  const uint64_t offset = Load64(&bytes[8]);
  if (offset == 0) return absl::OkStatus();
  const uint32_t length = Load32(&bytes[16]);
  if (length == 0 || length > kMaxBackingNameBytes) {
    return Broken("backing_file_size is ", length, "; possible are 1 to ", kMaxBackingNameBytes);
  }
  if (offset < header_length || offset > bytes.size() || length > bytes.size() - offset) {
    return Broken("the backing file's name (backing_file_offset ", offset, ", backing_file_size ", length,
                  ") does not lie between the header and the end of the first cluster");
  }
  header->backing_file.assign(reinterpret_cast<const char*>(&bytes[offset]), length);
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckL1Table(const Header& header, const std::string& what, uint64_t offset, uint64_t entries,
                          uint64_t disk_size, uint64_t file_size) {
  if (entries > kMaxL1Bytes / 8) {
    return Broken(what, " has ", entries, " entries; at most ", kMaxL1Bytes / 8, " are possible");
  }
  const uint64_t coverage = header.l2_coverage();
  const uint64_t needed = disk_size / coverage + (disk_size % coverage != 0 ? 1 : 0);
  if (entries < needed) {
    return Broken(what, " has ", entries, " entries, too few for a disk of ", disk_size,
                  " bytes, which takes ", needed);
  }
  if (entries == 0) return absl::OkStatus();
  return CheckTable(header, what, offset, entries * 8, file_size);
}

absl::StatusOr<uint64_t> HeaderBytes(absl::Span<const uint8_t> start) {
  if (start.size() < 24 || Load32(&start[0]) != kMagic) {
    return absl::InvalidArgumentError(
        "this is no qcow2 image: it does not begin with qcow2's magic number; name the format that it has");
  }
  const uint32_t version = Load32(&start[4]);
  if (version != 2 && version != 3) {
    return absl::UnimplementedError(
        absl::StrCat("the qcow2 image's version is ", version, "; known are 2 and 3"));
  }
  const uint32_t cluster_bits = Load32(&start[20]);
  if (cluster_bits < kMinClusterBits || cluster_bits > kMaxClusterBits) {
    return Broken("cluster_bits is ", cluster_bits, "; possible are ", kMinClusterBits, " to ",
                  kMaxClusterBits);
  }
  return uint64_t{1} << cluster_bits;
}

absl::StatusOr<Header> DecodeHeader(absl::Span<const uint8_t> first_cluster, uint64_t file_size) {
  const absl::StatusOr<uint64_t> cluster_size = HeaderBytes(first_cluster);
  if (!cluster_size.ok()) return cluster_size.status();
  const absl::Span<const uint8_t> bytes = first_cluster.subspan(0, *cluster_size);
  if (bytes.size() < kHeaderBytesV2) {
    return Broken("the file has ", bytes.size(), " bytes, a header at least ", kHeaderBytesV2);
  }
  Header header;
  header.version = Load32(&bytes[4]);
  header.cluster_bits = Load32(&bytes[20]);
  header.size = Load64(&bytes[24]);
  const uint32_t crypt_method = Load32(&bytes[32]);
  header.l1_size = Load32(&bytes[36]);
  header.l1_table_offset = Load64(&bytes[40]);
  header.refcount_table_offset = Load64(&bytes[48]);
  header.refcount_table_clusters = Load32(&bytes[56]);
  header.snapshot_count = Load32(&bytes[60]);
  header.snapshots_offset = Load64(&bytes[64]);
  uint32_t header_length = kHeaderBytesV2;
  uint8_t compression_type = 0;
  absl::Status status;
  if (header.version >= 3) status = DecodeVersion3(bytes, &header, &header_length, &compression_type);
  if (status.ok()) status = DecodeBackingFile(bytes, header_length, &header);
  if (!status.ok()) return status;

  const uint64_t backing_offset = Load64(&bytes[8]);
  const uint64_t area_end = backing_offset != 0 ? backing_offset : bytes.size();
  status = DecodeExtensions(bytes.subspan(header_length, area_end - header_length), &header);
  // An unknown feature first, as it may be what makes the rest look strange.
  if (status.ok()) status = CheckFeatures(header, compression_type);
  if (!status.ok()) return status;
  header.compression_type = static_cast<CompressionType>(compression_type);
  if (crypt_method > static_cast<uint32_t>(CryptMethod::kLuks)) {
    return absl::UnimplementedError(absl::StrCat("the qcow2 image's crypt_method is ", crypt_method,
                                                 "; known are 0 (none), 1 (AES) and 2 (LUKS)"));
  }
  header.crypt_method = static_cast<CryptMethod>(crypt_method);
  if (header.backing_file.find('\0') != std::string::npos) {
    return Broken("the backing file's name contains a NUL byte");
  }
  if (status = CheckTables(header, file_size); !status.ok()) return status;
  return header;
}

absl::StatusOr<std::vector<uint8_t>> EncodeHeader(const Header& header) {
  uint32_t header_length = kHeaderBytesV2;
  if (header.version >= 3) {
    header_length = kHeaderBytesV3;
    if (header.compression_type != CompressionType::kDeflate || !header.additional_fields.empty()) {
      header_length += (1 + static_cast<uint32_t>(header.additional_fields.size()) + 7) / 8 * 8;
    }
  }
  std::vector<uint8_t> bytes(header_length);
  Store32(&bytes[0], kMagic);
  Store32(&bytes[4], header.version);
  Store32(&bytes[20], header.cluster_bits);
  Store64(&bytes[24], header.size);
  Store32(&bytes[32], static_cast<uint32_t>(header.crypt_method));
  Store32(&bytes[36], header.l1_size);
  Store64(&bytes[40], header.l1_table_offset);
  Store64(&bytes[48], header.refcount_table_offset);
  Store32(&bytes[56], header.refcount_table_clusters);
  Store32(&bytes[60], header.snapshot_count);
  Store64(&bytes[64], header.snapshots_offset);
  if (header.version >= 3) {
    Store64(&bytes[72], header.incompatible_features);
    Store64(&bytes[80], header.compatible_features);
    Store64(&bytes[88], header.autoclear_features);
    Store32(&bytes[96], header.refcount_order);
    Store32(&bytes[100], header_length);
    if (header_length > kHeaderBytesV3) {
      bytes[kHeaderBytesV3] = static_cast<uint8_t>(header.compression_type);
      std::copy(header.additional_fields.begin(), header.additional_fields.end(),
                bytes.begin() + kHeaderBytesV3 + 1);
    }
  }
  AppendExtensions(header, &bytes);
  if (!header.backing_file.empty()) {
    Store64(&bytes[8], bytes.size());
    Store32(&bytes[16], static_cast<uint32_t>(header.backing_file.size()));
    bytes.insert(bytes.end(), header.backing_file.begin(), header.backing_file.end());
  }
  if (bytes.size() > header.cluster_size() || header.backing_file.size() > kMaxBackingNameBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the qcow2 header with its extensions and the backing file's name (", header.backing_file.size(),
        " bytes, at most ", kMaxBackingNameBytes, ") takes ", bytes.size(), " bytes, and a cluster has ",
        header.cluster_size(), "; shorten the name, or use larger clusters"));
  }
  return bytes;
}

}  // namespace berth::qcow2
