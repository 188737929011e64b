// NewImage: the bytes of an image that is to be made. Pure; no I/O.
//
// Header, refcount table, refcount blocks, L1 table, space for an encryption header, and, where clusters get
// their places now, L2 tables lie in this order at the start of the file; the data follows. Every cluster is
// used once.
#ifndef BERTH_IMAGE_QCOW2_FORMAT_NEW_IMAGE_H_
#define BERTH_IMAGE_QCOW2_FORMAT_NEW_IMAGE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "image/qcow2/format/header.h"

namespace berth::qcow2 {

// What qemu-img create calls these is in the errors.
struct NewImageOptions {
  uint32_t version = 3;  // 2 or 3.
  uint64_t size = 0;     // Of the disk, in bytes: a multiple of 512.
  uint64_t cluster_size = 65'536;
  uint32_t refcount_bits = 16;
  bool lazy_refcounts = false;
  bool extended_l2 = false;
  CompressionType compression_type = CompressionType::kDeflate;
  std::string backing_file = {};  // Empty: none.
  std::optional<std::string> backing_format = {};
  std::string data_file = {};  // Empty: none.
  bool data_file_raw = false;
  // Every cluster of the disk has its place, in the file or in the data file. A raw data file has that
  // always.
  bool preallocate = false;
  CryptMethod crypt_method = CryptMethod::kNone;
  // Space for it, in bytes; header().encryption says where. Whoever encrypts fills it.
  uint64_t encryption_header_bytes = 0;
};

class NewImage {
 public:
  // INVALID_ARGUMENT names the option, its value and the bound.
  static absl::StatusOr<NewImage> Plan(const NewImageOptions& options);

  const Header& header() const { return header_; }
  // With the data's clusters, which lie at the end and of which nothing has to be written.
  uint64_t file_size() const { return clusters_ << header_.cluster_bits; }
  // Clusters at the start of the file that Fill() knows.
  uint64_t metadata_clusters() const { return data_begin_; }

  // Fills `out`, as large as a cluster, with cluster `index` of the file, below metadata_clusters(). The
  // encryption header's are zeroes.
  void Fill(uint64_t index, absl::Span<uint8_t> out) const;

 private:
  NewImage() = default;

  void Arrange();
  absl::Status CheckTables() const;
  void FillRefcounts(uint64_t block, absl::Span<uint8_t> out) const;
  void FillL2(uint64_t table, absl::Span<uint8_t> out) const;

  Header header_;
  bool preallocate_ = false;
  std::vector<uint8_t> header_bytes_;
  // The first cluster of each kind; the header is cluster 0, the refcount table cluster 1.
  uint64_t blocks_begin_ = 0;
  uint64_t l1_begin_ = 0;
  uint64_t encryption_begin_ = 0;
  uint64_t l2_begin_ = 0;
  uint64_t data_begin_ = 0;
  uint64_t clusters_ = 0;
};

}  // namespace berth::qcow2

#endif  // BERTH_IMAGE_QCOW2_FORMAT_NEW_IMAGE_H_
