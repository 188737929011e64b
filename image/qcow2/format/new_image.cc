#include "image/qcow2/format/new_image.h"

#include <algorithm>
#include <bit>
#include <cassert>

#include "absl/strings/str_cat.h"
#include "image/io/big_endian.h"
#include "image/qcow2/format/cluster_entry.h"
#include "image/qcow2/format/refcount_block.h"

namespace berth::qcow2 {
namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kAllSubclusters = 0xffffffff;  // Allocated, and not zero.

template <typename... Parts>
absl::Status Impossible(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

uint64_t DivideUp(uint64_t a, uint64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

absl::Status CheckVersion(const NewImageOptions& options) {
  if (options.version == 3) return absl::OkStatus();
  if (options.version != 2) return Impossible("version is ", options.version, "; possible are 2 and 3");
  const auto needs = [](const char* what) {
    return Impossible("compat is 0.10 (version 2), and ", what, " needs 1.1 (version 3)");
  };
  if (options.refcount_bits != 16) return needs("refcount_bits other than 16");
  if (options.lazy_refcounts) return needs("lazy_refcounts");
  if (options.extended_l2) return needs("extended_l2");
  if (options.compression_type != CompressionType::kDeflate) return needs("compression_type other than zlib");
  if (!options.data_file.empty()) return needs("data_file");
  return absl::OkStatus();
}

absl::Status CheckFiles(const NewImageOptions& options) {
  if (options.backing_file.size() > kMaxBackingNameBytes) {
    return Impossible("backing_file has ", options.backing_file.size(), " bytes; at most ",
                      kMaxBackingNameBytes, " are possible");
  }
  for (const std::string* name : {&options.backing_file, &options.data_file}) {
    if (name->find('\0') != std::string::npos) return Impossible("a file's name holds a NUL byte");
  }
  if (options.backing_file.empty() && options.backing_format.has_value()) {
    return Impossible("there is a backing format and no backing file");
  }
  if (options.data_file_raw && options.data_file.empty()) {
    return Impossible("data_file_raw is set and there is no data_file");
  }
  if (options.data_file_raw && !options.backing_file.empty()) {
    return Impossible("data_file_raw is set, and a raw file cannot have a backing file");
  }
  if (options.preallocate && !options.backing_file.empty() && !options.extended_l2) {
    return Impossible(
        "a preallocated image hides its backing file, unless extended_l2 is set; leave preallocation off");
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const NewImageOptions& options) {
  if (options.size == 0 || options.size % kSector != 0) {
    return Impossible("the size is ", options.size, " bytes; possible are multiples of ", kSector);
  }
  if (!std::has_single_bit(options.cluster_size) || options.cluster_size < uint64_t{1} << kMinClusterBits ||
      options.cluster_size > uint64_t{1} << kMaxClusterBits) {
    return Impossible("cluster_size is ", options.cluster_size, "; possible are powers of two from ",
                      1 << kMinClusterBits, " to ", 1 << kMaxClusterBits);
  }
  if (!std::has_single_bit(options.refcount_bits) || options.refcount_bits > 64) {
    return Impossible("refcount_bits is ", options.refcount_bits, "; possible are 1, 2, 4, 8, 16, 32 and 64");
  }
  if (options.extended_l2 && options.cluster_size < uint64_t{1} << kMinExtendedL2ClusterBits) {
    return Impossible("cluster_size is ", options.cluster_size, "; with extended_l2 it is at least ",
                      1 << kMinExtendedL2ClusterBits);
  }
  if (absl::Status status = CheckVersion(options); !status.ok()) return status;
  return CheckFiles(options);
}

// So that a program which does not know a feature can say its name.
std::vector<FeatureName> FeatureNames() {
  return {{0, 0, "dirty"},
          {0, 1, "corrupt"},
          {0, 2, "external data file"},
          {0, 3, "compression type"},
          {0, 4, "extended L2 entries"},
          {1, 0, "lazy refcounts"},
          {2, 0, "bitmaps"},
          {2, 1, "raw external data"}};
}

Header MakeHeader(const NewImageOptions& options) {
  Header header;
  header.version = options.version;
  header.cluster_bits = static_cast<uint32_t>(std::countr_zero(options.cluster_size));
  header.size = options.size;
  header.crypt_method = options.crypt_method;
  header.refcount_order = static_cast<uint32_t>(std::countr_zero(options.refcount_bits));
  header.compression_type = options.compression_type;
  header.backing_file = options.backing_file;
  header.backing_format = options.backing_format;
  if (!options.data_file.empty()) {
    header.data_file = options.data_file;
    header.incompatible_features |= kExternalDataFile;
  }
  if (options.compression_type != CompressionType::kDeflate) header.incompatible_features |= kCompressionType;
  if (options.extended_l2) header.incompatible_features |= kExtendedL2;
  if (options.lazy_refcounts) header.compatible_features |= kLazyRefcounts;
  if (options.data_file_raw) header.autoclear_features |= kRawExternalData;
  if (options.encryption_header_bytes > 0) header.encryption = EncryptionHeader{};
  return header;
}

}  // namespace

absl::StatusOr<NewImage> NewImage::Plan(const NewImageOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  NewImage image;
  image.header_ = MakeHeader(options);
  image.preallocate_ = options.preallocate || options.data_file_raw;
  if (image.header_.encryption.has_value())
    image.header_.encryption->length = options.encryption_header_bytes;
  const uint64_t tables = DivideUp(options.size, image.header_.l2_coverage());
  if (tables * 8 > kMaxL1Bytes) {
    return Impossible("the size is ", options.size, " bytes; with clusters of ", options.cluster_size,
                      " bytes it is at most ", kMaxL1Bytes / 8 * image.header_.l2_coverage(),
                      "; use larger clusters");
  }
  image.header_.l1_size = static_cast<uint32_t>(tables);
  image.Arrange();
  if (absl::Status status = image.CheckTables(); !status.ok()) return status;
  if (image.header_.version >= 3) image.header_.feature_names = FeatureNames();
  absl::StatusOr<std::vector<uint8_t>> bytes = EncodeHeader(image.header_);
  if (!bytes.ok() && !image.header_.feature_names.empty()) {
    // Small clusters have no room for names.
    image.header_.feature_names.clear();
    bytes = EncodeHeader(image.header_);
  }
  if (!bytes.ok()) return bytes.status();
  image.header_bytes_ = *std::move(bytes);
  return image;
}

// Refcount table and blocks count themselves too, so their number grows until they cover everything.
void NewImage::Arrange() {
  const uint64_t cluster = header_.cluster_size();
  const uint64_t l1 = DivideUp(uint64_t{header_.l1_size} * 8, cluster);
  const uint64_t encryption =
      header_.encryption.has_value() ? DivideUp(header_.encryption->length, cluster) : 0;
  const uint64_t l2 = preallocate_ ? header_.l1_size : 0;
  const uint64_t data = preallocate_ && !header_.has_data_file() ? DivideUp(header_.size, cluster) : 0;
  const uint64_t entries = RefcountEntries(cluster, header_.refcount_order);
  uint64_t table = 1;
  uint64_t blocks = 1;
  while (true) {
    clusters_ = 1 + table + blocks + l1 + encryption + l2 + data;
    const uint64_t more_blocks = DivideUp(clusters_, entries);
    const uint64_t more_table = DivideUp(more_blocks * 8, cluster);
    if (more_blocks <= blocks && more_table <= table) break;
    blocks = std::max(blocks, more_blocks);
    table = std::max(table, more_table);
  }
  blocks_begin_ = 1 + table;
  l1_begin_ = blocks_begin_ + blocks;
  encryption_begin_ = l1_begin_ + l1;
  l2_begin_ = encryption_begin_ + encryption;
  data_begin_ = l2_begin_ + l2;
  header_.refcount_table_offset = cluster;
  header_.refcount_table_clusters = static_cast<uint32_t>(table);
  header_.l1_table_offset = l1_begin_ << header_.cluster_bits;
  if (header_.encryption.has_value()) header_.encryption->offset = encryption_begin_ << header_.cluster_bits;
}

absl::Status NewImage::CheckTables() const {
  const uint64_t bytes = (blocks_begin_ - 1) << header_.cluster_bits;
  if (bytes > kMaxRefcountTableBytes || clusters_ > (kOffsetMask >> header_.cluster_bits)) {
    return Impossible(
        "the image would have ", clusters_, " clusters of ", header_.cluster_size(),
        " bytes, more than its refcounts can cover; use larger clusters, fewer refcount_bits, or "
        "leave preallocation off");
  }
  return absl::OkStatus();
}

void NewImage::Fill(uint64_t index, absl::Span<uint8_t> out) const {
  assert(index < data_begin_ && out.size() == header_.cluster_size());
  std::fill(out.begin(), out.end(), 0);
  const uint64_t a_cluster = out.size() / 8;
  if (index == 0) {
    std::copy(header_bytes_.begin(), header_bytes_.end(), out.begin());
  } else if (index < blocks_begin_) {
    for (uint64_t i = 0; i < a_cluster; ++i) {
      const uint64_t block = blocks_begin_ + (index - 1) * a_cluster + i;
      if (block < l1_begin_) Store64(&out[i * 8], block << header_.cluster_bits);
    }
  } else if (index < l1_begin_) {
    FillRefcounts(index - blocks_begin_, out);
  } else if (index < encryption_begin_) {
    for (uint64_t i = 0; i < a_cluster; ++i) {
      const uint64_t table = l2_begin_ + (index - l1_begin_) * a_cluster + i;
      if (table < data_begin_) Store64(&out[i * 8], table << header_.cluster_bits | kCopied);
    }
  } else if (index >= l2_begin_) {
    FillL2(index - l2_begin_, out);
  }
}

void NewImage::FillRefcounts(uint64_t block, absl::Span<uint8_t> out) const {
  const uint64_t entries = RefcountEntries(out.size(), header_.refcount_order);
  const uint64_t used = std::min(entries, clusters_ - std::min(clusters_, block * entries));
  for (uint64_t i = 0; i < used; ++i) SetRefcount(out, header_.refcount_order, i, 1);
}

void NewImage::FillL2(uint64_t table, absl::Span<uint8_t> out) const {
  const uint64_t entry_bytes = header_.l2_entry_bytes();
  const uint64_t entries = out.size() / entry_bytes;
  const uint64_t guest_clusters = DivideUp(header_.size, header_.cluster_size());
  for (uint64_t i = 0; i < entries; ++i) {
    const uint64_t guest = table * entries + i;
    if (guest >= guest_clusters) return;
    // In a data file a cluster lies where the guest sees it.
    const uint64_t host = header_.has_data_file() ? guest : data_begin_ + guest;
    Store64(&out[i * entry_bytes], host << header_.cluster_bits | kCopied);
    // Space without data reads as the backing file has it, or as zeroes; a raw data file's is what it is.
    if (header_.extended_l2() && (header_.autoclear_features & kRawExternalData) != 0) {
      Store64(&out[i * entry_bytes + 8], kAllSubclusters);
    }
  }
}

}  // namespace berth::qcow2
