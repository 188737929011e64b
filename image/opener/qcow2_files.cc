#include "image/opener/qcow2_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "image/block/error_reason.h"
#include "image/io/file.h"
#include "image/opener/disk_space.h"
#include "image/opener/new_file.h"
#include "image/opener/opener.h"
#include "image/opener/qcow2_chain.h"
#include "image/qcow2/image_directories.h"
#include "image/qcow2/new_image_writer.h"
#include "image/qcow2/qcow2_device.h"
#include "image/raw/raw_device.h"

namespace berth {
namespace {

constexpr uint64_t kSector = 512;

constexpr RawOptions kToLookAt = {.read_only = true, .lock = LockMode::kNone, .may_be_empty = true};

// `status` with what it is about in front, and the payload it had.
absl::Status About(absl::string_view what, const absl::Status& status) {
  absl::Status named(status.code(), absl::StrCat(what, ": ", status.message()));
  status.ForEachPayload(
      [&named](absl::string_view type, const absl::Cord& payload) { named.SetPayload(type, payload); });
  return named;
}

absl::StatusOr<std::shared_ptr<RawDevice>> OpenToLookAt(const ImageRoots& roots, const std::string& path) {
  absl::StatusOr<UniqueFd> fd = roots.OpenFile(path, RawDevice::OpenFlags(kToLookAt));
  if (!fd.ok()) return fd.status();
  return RawDevice::Adopt(*std::move(fd), path, kToLookAt);
}

// Opens the backing file of an image that is to be made, as it will be opened, and returns its size.
absl::StatusOr<uint64_t> BackingSize(const ImageRoots& roots, const std::string& path,
                                     const qcow2::NewImageOptions& options) {
  if (!options.backing_format.has_value()) {
    return absl::InvalidArgumentError(
        "the backing file's format is not given, and is never guessed: raw or qcow2");
  }
  const absl::StatusOr<ImageFormat> format = ParseImageFormat(*options.backing_format);
  if (!format.ok() || (*format != ImageFormat::kRaw && *format != ImageFormat::kQcow2)) {
    return absl::InvalidArgumentError(absl::StrCat("the backing file's format is \"", *options.backing_format,
                                                   "\"; possible are raw and qcow2"));
  }
  const absl::StatusOr<std::string> name = ResolveNameInImage(path, options.backing_file);
  if (!name.ok()) return name.status();
  const auto device =
      OpenImage({.format = *format, .path = *name, .lock = LockMode::kNone, .read_only = true}, roots);
  if (!device.ok()) return About("the backing file", device.status());
  return (*device)->size();
}

// What of an image cannot have changed since it was made with the same options.
bool SameOptions(const qcow2::Header& a, const qcow2::Header& b) {
  constexpr uint64_t kChange = qcow2::kDirty | qcow2::kCorrupt;
  return a.version == b.version && a.cluster_bits == b.cluster_bits && a.size == b.size &&
         a.crypt_method == b.crypt_method && a.refcount_order == b.refcount_order &&
         a.compression_type == b.compression_type && a.compatible_features == b.compatible_features &&
         (a.incompatible_features & ~kChange) == (b.incompatible_features & ~kChange) &&
         (a.autoclear_features & qcow2::kRawExternalData) ==
             (b.autoclear_features & qcow2::kRawExternalData) &&
         a.backing_file == b.backing_file && a.backing_format == b.backing_format &&
         a.data_file == b.data_file;
}

// The image that is there already: an answer to a repeated request, or in the way.
absl::StatusOr<ImageFileInfo> TakeExisting(const ImageRoots& roots, const std::string& path,
                                           const qcow2::Header& wanted) {
  // Whoever made it may have died before this.
  if (absl::Status status = MakeNameDurable(roots, path); !status.ok()) return status;
  const auto existing = OpenToLookAt(roots, path);
  const absl::StatusOr<qcow2::Header> header =
      existing.ok() ? ReadQcow2Header(**existing) : absl::StatusOr<qcow2::Header>(existing.status());
  if (!header.ok()) {
    return absl::AlreadyExistsError(
        absl::StrCat("\"", path, "\" exists and is not such an image: ", header.status().message()));
  }
  if (!SameOptions(*header, wanted)) {
    return absl::AlreadyExistsError(
        absl::StrCat("\"", path, "\" exists, as a qcow2 image of ", header->size,
                     " bytes, and its size or options are not those of the request"));
  }
  absl::StatusOr<File> file = OpenRegular(roots, path, O_RDONLY);
  if (!file.ok()) return file.status();
  absl::StatusOr<ImageFileInfo> info = InspectFile(*file);
  if (info.ok()) info->size = header->size;
  return info;
}

// A data file that is there already: one that a crash left behind has the size and no data.
absl::Status TakeDataFile(const ImageRoots& roots, const std::string& path, uint64_t size,
                          Preallocation preallocation, Progress& progress) {
  absl::StatusOr<File> file = OpenRegular(roots, path, O_RDWR);
  if (!file.ok()) return file.status();
  const absl::StatusOr<ImageFileInfo> info = InspectFile(*file);
  if (!info.ok()) return info.status();
  if (info->in_use || info->size != size || lseek(file->fd(), 0, SEEK_DATA) >= 0 || errno != ENXIO) {
    return absl::AlreadyExistsError(absl::StrCat("the data file \"", path,
                                                 "\" exists, and is not an empty one of ", size,
                                                 " bytes; choose another name, or remove it"));
  }
  if (preallocation < Preallocation::kFalloc) return absl::OkStatus();
  return SetSpaceAside(file->fd(), path, size, preallocation == Preallocation::kFull, progress);
}

// Takes away a data file whose image was not made.
class MadeDataFile {
 public:
  MadeDataFile() = default;
  MadeDataFile(const MadeDataFile&) = delete;
  ~MadeDataFile() {
    if (place_.directory) unlinkat(place_.directory.get(), place_.name.c_str(), 0);
  }
  void Set(ImageRoots::Place place) { place_ = std::move(place); }
  void Keep() { place_.directory = UniqueFd(); }

 private:
  ImageRoots::Place place_;
};

absl::Status MakeDataFile(const ImageRoots& roots, const std::string& path, uint64_t size,
                          Preallocation preallocation, Progress& progress, MadeDataFile* made) {
  absl::StatusOr<NewFile> file = NewFile::Create(roots, path);
  absl::Status status = file.status();
  if (status.ok()) {
    status = SetFileSize(file->fd(), path, size);
    if (status.ok() && preallocation >= Preallocation::kFalloc) {
      status = SetSpaceAside(file->fd(), path, size, preallocation == Preallocation::kFull, progress);
    }
    if (!status.ok()) return status;
    absl::StatusOr<ImageRoots::Place> place = roots.FindPlace(path);
    if (!place.ok()) return place.status();
    status = file->Publish();
    if (status.ok()) made->Set(*std::move(place));
  }
  if (absl::IsAlreadyExists(status)) return TakeDataFile(roots, path, size, preallocation, progress);
  return status;
}

// Fills the nameless `file`.
absl::Status Fill(const NewFile& file, const std::string& path, const qcow2::NewImage& image,
                  Preallocation preallocation, Progress& progress) {
  const bool has_data = !image.header().has_data_file();
  if (has_data && preallocation >= Preallocation::kFalloc) {
    absl::Status status = SetFileSize(file.fd(), path, image.file_size());
    if (!status.ok()) return status;
    status =
        SetSpaceAside(file.fd(), path, image.file_size(), preallocation == Preallocation::kFull, progress);
    if (!status.ok()) return status;
  }
  RawOptions options;
  options.lock = LockMode::kNone;
  options.may_be_empty = true;
  auto device = RawDevice::Adopt(UniqueFd(fcntl(file.fd(), F_DUPFD_CLOEXEC, 0)), path, options);
  if (!device.ok()) return device.status();
  return qcow2::WriteNewImage(**device, image, progress);
}

absl::StatusOr<InspectedImage> InspectOne(const ImageRoots& roots, const std::string& path,
                                          ImageFormat format) {
  InspectedImage image;
  image.path = path;
  image.format = format;
  absl::StatusOr<File> file = OpenRegular(roots, path, O_RDONLY);
  if (!file.ok()) return file.status();
  absl::StatusOr<ImageFileInfo> info = InspectFile(*file);
  if (!info.ok()) return info.status();
  image.file = *info;
  if (format != ImageFormat::kQcow2) return image;
  const auto device = OpenToLookAt(roots, path);
  if (!device.ok()) return device.status();
  absl::StatusOr<qcow2::Header> header = ReadQcow2Header(**device);
  if (!header.ok()) return About(absl::StrCat("\"", path, "\""), header.status());
  Qcow2Details details;
  absl::StatusOr<std::vector<qcow2::Snapshot>> snapshots = qcow2::ReadSnapshots(**device, *header);
  if (!snapshots.ok()) return About(absl::StrCat("\"", path, "\""), snapshots.status());
  absl::StatusOr<std::vector<qcow2::BitmapEntry>> bitmaps = qcow2::ReadBitmaps(**device, *header);
  if (!bitmaps.ok()) return About(absl::StrCat("\"", path, "\""), bitmaps.status());
  if (!header->backing_file.empty()) {
    details.full_backing_file = ResolveNameInImage(path, header->backing_file).value_or("");
  }
  if (header->data_file.has_value()) {
    details.full_data_file = ResolveNameInImage(path, *header->data_file).value_or("");
  }
  image.file.size = header->size;
  details.snapshots = *std::move(snapshots);
  details.bitmaps = *std::move(bitmaps);
  details.header = *std::move(header);
  image.qcow2 = std::move(details);
  return image;
}

}  // namespace

absl::StatusOr<ImageFileInfo> CreateQcow2Image(const ImageRoots& roots, const std::string& path,
                                               qcow2::NewImageOptions options, Preallocation preallocation,
                                               Progress* progress) {
  Progress unseen;
  if (progress == nullptr) progress = &unseen;
  if (!options.backing_file.empty()) {
    const absl::StatusOr<uint64_t> size = BackingSize(roots, path, options);
    if (!size.ok()) return size.status();
    if (options.size == 0) options.size = (*size + kSector - 1) / kSector * kSector;
  }
  options.preallocate = preallocation != Preallocation::kOff;
  const absl::StatusOr<qcow2::NewImage> image = qcow2::NewImage::Plan(options);
  if (!image.ok()) return image.status();
  absl::StatusOr<std::string> data_path = std::string();
  if (!options.data_file.empty()) data_path = ResolveNameInImage(path, options.data_file);
  if (!data_path.ok()) return data_path.status();
  if (*data_path == path) return absl::InvalidArgumentError("the data file is the image itself");

  if (preallocation >= Preallocation::kFalloc) {
    progress->SetTotal(data_path->empty() ? image->file_size() : options.size);
  }
  absl::StatusOr<NewFile> file = NewFile::Create(roots, path);
  if (absl::IsAlreadyExists(file.status())) return TakeExisting(roots, path, image->header());
  if (!file.ok()) return file.status();
  MadeDataFile data;
  absl::Status status;
  if (!data_path->empty()) {
    status = MakeDataFile(roots, *data_path, options.size, preallocation, *progress, &data);
  }
  if (status.ok()) status = Fill(*file, path, *image, preallocation, *progress);
  if (!status.ok()) return status;
  status = file->Publish();
  if (absl::IsAlreadyExists(status)) {
    // Somebody made it meanwhile, perhaps with the same data file.
    data.Keep();
    return TakeExisting(roots, path, image->header());
  }
  if (!status.ok()) return status;
  data.Keep();
  absl::StatusOr<File> made = OpenRegular(roots, path, O_RDONLY);
  if (!made.ok()) return made.status();
  absl::StatusOr<ImageFileInfo> info = InspectFile(*made);
  if (info.ok()) info->size = options.size;
  return info;
}

absl::StatusOr<std::vector<InspectedImage>> InspectQcow2Image(const ImageRoots& roots,
                                                              const std::string& path,
                                                              std::optional<ImageFormat> backing_format,
                                                              bool chain) {
  std::vector<InspectedImage> images;
  std::string next = path;
  ImageFormat format = ImageFormat::kQcow2;
  while (true) {
    // A loop ends here too.
    if (images.size() == kMostLayers) {
      return absl::InvalidArgumentError(
          absl::StrCat("the backing chain of \"", path, "\" has more than ", kMostLayers, " images"));
    }
    absl::StatusOr<InspectedImage> image = InspectOne(roots, next, format);
    if (!image.ok()) {
      return images.empty() ? image.status()
                            : About(absl::StrCat("\"", images.back().path, "\""), image.status());
    }
    images.push_back(*std::move(image));
    const std::optional<Qcow2Details>& details = images.back().qcow2;
    if (!chain || !details.has_value() || details->header.backing_file.empty()) return images;
    const absl::StatusOr<ImageFormat> below = FormatOfBackingFile(next, details->header, backing_format);
    if (!below.ok()) return below.status();
    const absl::StatusOr<std::string> name = ResolveNameInImage(next, details->header.backing_file);
    if (!name.ok()) return About(absl::StrCat("\"", next, "\""), name.status());
    next = *name;
    format = *below;
  }
}

absl::StatusOr<ImageFileInfo> ResizeQcow2Image(const ImageRoots& roots, const std::string& path,
                                               uint64_t size, bool allow_shrink,
                                               std::optional<ImageFormat> backing_format) {
  {
    ImageSpec spec;
    spec.format = ImageFormat::kQcow2;
    spec.path = path;
    spec.backing_format = backing_format;
    const absl::StatusOr<std::shared_ptr<BlockDevice>> device = OpenImage(spec, roots);
    if (!device.ok()) return device.status();
    if (size < (*device)->size() && !allow_shrink) {
      return WithReason(absl::FailedPreconditionError(
                            absl::StrCat("\"", path, "\" has ", (*device)->size(), " bytes; ", size,
                                         " would cut off its end, which must be allowed explicitly")),
                        kReasonWouldShrink);
    }
    if (absl::Status status = (*device)->Resize(size); !status.ok()) return status;
  }
  absl::StatusOr<InspectedImage> image = InspectOne(roots, path, ImageFormat::kQcow2);
  if (!image.ok()) return image.status();
  return image->file;
}

}  // namespace berth
