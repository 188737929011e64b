#include "control/image_messages.h"

#include "absl/strings/str_cat.h"
#include "control/status_details.h"
#include "control/utf8.h"

namespace berth::control {
namespace {

absl::StatusOr<uint32_t> ToVersion(const std::string& compat) {
  if (compat.empty() || compat == "1.1") return 3;
  if (compat == "0.10") return 2;
  return InvalidField("qcow2.compat", absl::StrCat(Quoted(compat), " is none of \"1.1\" and \"0.10\""));
}

absl::StatusOr<qcow2::CompressionType> ToCompressionType(v1::CompressionType type) {
  switch (type) {
    case v1::COMPRESSION_TYPE_UNSPECIFIED:
    case v1::COMPRESSION_TYPE_ZLIB:
      return qcow2::CompressionType::kDeflate;
    case v1::COMPRESSION_TYPE_ZSTD:
      return qcow2::CompressionType::kZstd;
    default:
      return InvalidField("qcow2.compression_type",
                          absl::StrCat(type, " is no compression type of this server: ZLIB or ZSTD"));
  }
}

void FillSnapshot(const qcow2::Snapshot& snapshot, uint64_t disk_size, v1::InternalSnapshot* answer) {
  answer->set_id(ValidUtf8(snapshot.id));
  answer->set_name(ValidUtf8(snapshot.name));
  answer->mutable_create_time()->set_seconds(snapshot.date_seconds);
  answer->mutable_create_time()->set_nanos(static_cast<int32_t>(snapshot.date_nanoseconds % 1'000'000'000));
  answer->set_disk_size_bytes(snapshot.disk_size.value_or(disk_size));
  answer->set_vm_state_size_bytes(snapshot.vm_state_size);
  answer->set_vm_clock_nanoseconds(snapshot.vm_clock_nanoseconds);
  // Images have all ones where nothing was recorded.
  const uint64_t icount = snapshot.icount.value_or(0);
  answer->set_icount(icount == ~uint64_t{0} ? 0 : icount);
}

void FillQcow2(const Qcow2Details& details, v1::Qcow2Info* answer) {
  const qcow2::Header& header = details.header;
  answer->set_compat(header.version == 2 ? "0.10" : "1.1");
  answer->set_cluster_size_bytes(static_cast<uint32_t>(header.cluster_size()));
  answer->set_refcount_bits(1u << header.refcount_order);
  answer->set_lazy_refcounts((header.compatible_features & qcow2::kLazyRefcounts) != 0);
  answer->set_extended_l2(header.extended_l2());
  answer->set_compression_type(header.compression_type == qcow2::CompressionType::kZstd
                                   ? v1::COMPRESSION_TYPE_ZSTD
                                   : v1::COMPRESSION_TYPE_ZLIB);
  answer->set_dirty((header.incompatible_features & qcow2::kDirty) != 0);
  answer->set_corrupt((header.incompatible_features & qcow2::kCorrupt) != 0);
  answer->set_backing_file(ValidUtf8(header.backing_file));
  answer->set_full_backing_file(ValidUtf8(details.full_backing_file));
  answer->set_backing_format(ValidUtf8(header.backing_format.value_or("")));
  answer->set_data_file(ValidUtf8(header.data_file.value_or("")));
  answer->set_full_data_file(ValidUtf8(details.full_data_file));
  answer->set_data_file_raw((header.autoclear_features & qcow2::kRawExternalData) != 0);
  for (const qcow2::Snapshot& snapshot : details.snapshots) {
    FillSnapshot(snapshot, header.size, answer->add_snapshots());
  }
  for (const qcow2::BitmapEntry& bitmap : details.bitmaps) {
    v1::DirtyBitmap* const shown = answer->add_bitmaps();
    shown->set_name(ValidUtf8(bitmap.name));
    shown->set_granularity_bytes(uint64_t{1} << bitmap.granularity_bits);
    shown->set_enabled((bitmap.flags & qcow2::kBitmapAuto) != 0);
    shown->set_inconsistent((bitmap.flags & qcow2::kBitmapInUse) != 0);
  }
  if (header.crypt_method == qcow2::CryptMethod::kAes) answer->set_encryption_format("aes");
  if (header.crypt_method == qcow2::CryptMethod::kLuks) answer->set_encryption_format("luks");
}

}  // namespace

absl::StatusOr<qcow2::NewImageOptions> ToNewImageOptions(const v1::CreateImageRequest& request) {
  const v1::Qcow2Options& wanted = request.qcow2();
  qcow2::NewImageOptions options;
  options.size = request.size_bytes();
  const absl::StatusOr<uint32_t> version = ToVersion(wanted.compat());
  if (!version.ok()) return version.status();
  options.version = *version;
  if (wanted.cluster_size_bytes() != 0) options.cluster_size = wanted.cluster_size_bytes();
  if (wanted.refcount_bits() != 0) options.refcount_bits = wanted.refcount_bits();
  options.lazy_refcounts = wanted.lazy_refcounts();
  options.extended_l2 = wanted.extended_l2();
  const absl::StatusOr<qcow2::CompressionType> compression = ToCompressionType(wanted.compression_type());
  if (!compression.ok()) return compression.status();
  options.compression_type = *compression;
  options.backing_file = wanted.backing_file();
  switch (wanted.backing_format()) {
    case v1::IMAGE_FORMAT_UNSPECIFIED:
      if (!wanted.backing_file().empty()) {
        return InvalidField("qcow2.backing_format", "name the backing file's format: RAW or QCOW2");
      }
      break;
    case v1::IMAGE_FORMAT_RAW:
      options.backing_format = "raw";
      break;
    case v1::IMAGE_FORMAT_QCOW2:
      options.backing_format = "qcow2";
      break;
    default:
      return InvalidField("qcow2.backing_format", "is no format of a backing file: RAW or QCOW2");
  }
  options.data_file = wanted.data_file();
  options.data_file_raw = wanted.data_file_raw();
  if (!v1::Preallocation_IsValid(wanted.preallocation())) {
    return InvalidField("qcow2.preallocation",
                        absl::StrCat(wanted.preallocation(),
                                     " is no preallocation of this server: OFF, METADATA, FALLOC or FULL"));
  }
  return options;
}

Preallocation ToPreallocation(const v1::CreateImageRequest& request) {
  switch (request.qcow2().preallocation()) {
    case v1::PREALLOCATION_FULL:
      return Preallocation::kFull;
    case v1::PREALLOCATION_FALLOC:
      return Preallocation::kFalloc;
    case v1::PREALLOCATION_METADATA:
      return request.preallocate() ? Preallocation::kFalloc : Preallocation::kMetadata;
    default:
      return request.preallocate() ? Preallocation::kFalloc : Preallocation::kOff;
  }
}

std::optional<ImageFormat> ToBackingFormat(v1::ImageFormat format) {
  if (format == v1::IMAGE_FORMAT_UNSPECIFIED) return std::nullopt;
  return format == v1::IMAGE_FORMAT_QCOW2 ? ImageFormat::kQcow2 : ImageFormat::kRaw;
}

void FillImageInfo(const std::string& path, v1::ImageFormat format, const ImageFileInfo& file,
                   v1::ImageInfo* answer) {
  answer->set_path(ValidUtf8(path));
  answer->set_format(format);
  answer->set_size_bytes(file.size);
  answer->set_allocated_bytes(file.allocated);
  answer->set_in_use(file.in_use);
}

void FillImageInfo(const InspectedImage& image, v1::ImageInfo* answer) {
  FillImageInfo(image.path,
                image.format == ImageFormat::kQcow2 ? v1::IMAGE_FORMAT_QCOW2 : v1::IMAGE_FORMAT_RAW,
                image.file, answer);
  if (image.qcow2.has_value()) FillQcow2(*image.qcow2, answer->mutable_qcow2());
}

}  // namespace berth::control
