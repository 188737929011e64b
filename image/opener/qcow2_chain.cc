#include "image/opener/qcow2_chain.h"

#include <sys/stat.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "image/io/unique_fd.h"
#include "image/opener/qcow2_encryption.h"
#include "image/qcow2/format/header.h"
#include "image/qcow2/qcow2_device.h"
#include "image/raw/raw_device.h"

namespace berth {
namespace {

// What of a name ends up in messages.
constexpr size_t kShownNameBytes = 200;

struct FileIdentity {
  dev_t device;
  ino_t inode;
  bool operator==(const FileIdentity&) const = default;
};

struct Layer {
  std::string path;
  std::shared_ptr<BlockDevice> image;
  std::shared_ptr<BlockDevice> data;
  std::optional<qcow2::Header> header;  // None for raw.
};

// `status` with what it is about in front, and the payload it had.
absl::Status About(const std::string& path, const absl::Status& status) {
  absl::Status named(status.code(), absl::StrCat("\"", path, "\": ", status.message()));
  status.ForEachPayload(
      [&named](absl::string_view type, const absl::Cord& payload) { named.SetPayload(type, payload); });
  return named;
}

class Chain {
 public:
  Chain(const ImageSpec& spec, const ImageRoots& roots) : spec_(spec), roots_(roots) {}

  absl::Status OpenFiles() {
    std::string path = spec_.path;
    ImageFormat format = ImageFormat::kQcow2;
    while (true) {
      if (layers_.size() == kMostLayers) {
        return absl::InvalidArgumentError(absl::StrCat("the backing chain of \"", spec_.path,
                                                       "\" has more than ", kMostLayers,
                                                       " images; merge some with qemu-img commit"));
      }
      absl::StatusOr<Layer> layer = OpenLayer(path, format);
      if (!layer.ok()) return layer.status();
      layers_.push_back(*std::move(layer));
      const Layer& last = layers_.back();
      if (!last.header.has_value() || last.header->backing_file.empty()) return absl::OkStatus();
      absl::StatusOr<ImageFormat> below = FormatOfBackingFile(last.path, *last.header, spec_.backing_format);
      if (!below.ok()) return below.status();
      absl::StatusOr<std::string> name = ResolveNameInImage(last.path, last.header->backing_file);
      if (!name.ok()) return About(last.path, name.status());
      path = *std::move(name);
      format = *below;
    }
  }

  // From the lowest image up.
  absl::StatusOr<std::shared_ptr<BlockDevice>> Build() {
    if (absl::Status status = CheckSecret(); !status.ok()) return status;
    std::shared_ptr<BlockDevice> device;
    for (size_t i = layers_.size(); i-- > 0;) {
      Layer& layer = layers_[i];
      if (!layer.header.has_value()) {
        device = std::move(layer.image);
        continue;
      }
      Qcow2Options options;
      if (i == 0) {
        options.snapshot = spec_.snapshot;
        options.writable = !spec_.read_only;
        options.bitmaps = true;
        options.durable_writes = WritesAreDurable(spec_.cache);
        options.unmap = spec_.discard == DiscardMode::kUnmap;
      }
      absl::StatusOr<Qcow2Encryption> encryption =
          OpenQcow2Encryption(*layer.header, layer.image, layer.data, spec_.secret);
      if (!encryption.ok()) return About(layer.path, encryption.status());
      options.old_cipher = encryption->old_cipher;
      auto opened = Qcow2Device::Open({std::move(layer.image), std::move(layer.data), std::move(device),
                                       std::move(encryption->decrypted)},
                                      *layer.header, options);
      if (!opened.ok()) return About(layer.path, opened.status());
      device = *std::move(opened);
    }
    return device;
  }

 private:
  // Whoever gives a secret relies on the image being encrypted.
  absl::Status CheckSecret() const {
    const auto encrypted = [](const Layer& layer) {
      return layer.header.has_value() && layer.header->crypt_method != qcow2::CryptMethod::kNone;
    };
    if (spec_.secret.empty() || std::any_of(layers_.begin(), layers_.end(), encrypted)) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat("a secret is given, and nothing in the chain of \"", spec_.path, "\" is encrypted"));
  }

  // The top of the chain alone is ever written.
  absl::StatusOr<std::shared_ptr<BlockDevice>> OpenFile(const std::string& path, bool read_only) {
    RawOptions options;
    options.read_only = read_only;
    options.cache = spec_.cache;
    // Who writes to an image that others have open changes metadata that they remember, whether or not the
    // users of the disk coordinate.
    options.lock = spec_.lock == LockMode::kNone ? LockMode::kNone : LockMode::kExclusive;
    options.may_be_empty = true;
    absl::StatusOr<UniqueFd> fd = roots_.OpenFile(path, RawDevice::OpenFlags(options));
    if (!fd.ok()) return fd.status();
    if (absl::Status status = NoteFile(fd->get(), path); !status.ok()) return status;
    return RawDevice::Adopt(*std::move(fd), path, options);
  }

  absl::Status NoteFile(int fd, const std::string& path) {
    struct stat info;
    if (fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("fstat \"", path, "\""));
    const FileIdentity file =
        S_ISBLK(info.st_mode) ? FileIdentity{info.st_rdev, 0} : FileIdentity{info.st_dev, info.st_ino};
    if (std::find(files_.begin(), files_.end(), file) != files_.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the backing chain of \"", spec_.path, "\" comes to \"", path, "\" a second time"));
    }
    files_.push_back(file);
    return absl::OkStatus();
  }

  absl::StatusOr<Layer> OpenLayer(const std::string& path, ImageFormat format) {
    Layer layer;
    layer.path = path;
    absl::StatusOr<std::shared_ptr<BlockDevice>> image = OpenFile(path, spec_.read_only || !layers_.empty());
    if (!image.ok()) return Context(image.status());
    layer.image = *std::move(image);
    if (format == ImageFormat::kRaw) return layer;
    absl::StatusOr<qcow2::Header> header = ReadQcow2Header(*layer.image);
    if (!header.ok()) return About(path, header.status());
    layer.header = *std::move(header);
    if (!layer.header->has_data_file()) return layer;
    if (!layer.header->data_file.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", path,
                       "\" keeps its data in an external file and does not name it; set the name with "
                       "qemu-img amend -o data_file=NAME"));
    }
    absl::StatusOr<std::string> name = ResolveNameInImage(path, *layer.header->data_file);
    if (!name.ok()) return About(path, name.status());
    absl::StatusOr<std::shared_ptr<BlockDevice>> data = OpenFile(*name, spec_.read_only || !layers_.empty());
    if (!data.ok()) return About(path, data.status());
    layer.data = *std::move(data);
    return layer;
  }

  // A file that cannot be opened: which image wanted it.
  absl::Status Context(const absl::Status& status) const {
    return layers_.empty() ? status : About(layers_.back().path, status);
  }

  const ImageSpec& spec_;
  const ImageRoots& roots_;
  std::vector<Layer> layers_;  // From the top down.
  std::vector<FileIdentity> files_;
};

absl::Status CheckSpec(const ImageSpec& spec) {
  if (spec.size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("size_bytes is ", spec.size, "; the size of a qcow2 image stands in its file"));
  }
  if (spec.backing_format.has_value() && *spec.backing_format != ImageFormat::kRaw &&
      *spec.backing_format != ImageFormat::kQcow2) {
    return absl::InvalidArgumentError(absl::StrCat("the format of backing files is \"",
                                                   ImageFormatName(*spec.backing_format),
                                                   "\"; possible are raw and qcow2"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ImageFormat> FormatOfBackingFile(const std::string& image_path, const qcow2::Header& header,
                                                std::optional<ImageFormat> given) {
  const std::optional<std::string>& stated = header.backing_format;
  if (!stated.has_value()) {
    if (given.has_value()) return *given;
    const std::string name = header.backing_file.substr(0, kShownNameBytes);
    return absl::FailedPreconditionError(absl::StrCat("\"", image_path, "\" names the backing file \"", name,
                                                      "\" without its format, which is never guessed; give "
                                                      "the format of backing files, or write it into the "
                                                      "image with qemu-img rebase -u -F FORMAT -b ",
                                                      name, " ", image_path));
  }
  if (*stated == "raw") return ImageFormat::kRaw;
  if (*stated == "qcow2") return ImageFormat::kQcow2;
  return absl::UnimplementedError(
      absl::StrCat("\"", image_path, "\" says that its backing file has the format \"",
                   stated->substr(0, kShownNameBytes), "\"; known are raw and qcow2"));
}

absl::StatusOr<std::string> ResolveNameInImage(const std::string& image_path, const std::string& name) {
  std::string file = name;
  const absl::string_view first = absl::string_view(name).substr(0, name.find('/'));
  if (absl::StartsWith(name, "file:")) {
    file = name.substr(5);
  } else if (absl::StrContains(first, ':')) {
    return absl::InvalidArgumentError(
        absl::StrCat("the image names the file \"", name.substr(0, kShownNameBytes), "\", which is a ",
                     absl::StartsWith(name, "json:") ? "json: description" : "protocol",
                     " and no plain file; write a file name into the image with qemu-img rebase -u -F FORMAT "
                     "-b FILE (a file "
                     "whose name has a colon: ./FILE)"));
  }
  if (file.empty()) return absl::InvalidArgumentError("the image names a file with an empty name");
  if (file[0] == '/') return file;
  const size_t slash = image_path.find_last_of('/');
  return slash == std::string::npos ? file : image_path.substr(0, slash + 1) + file;
}

absl::StatusOr<std::shared_ptr<BlockDevice>> OpenQcow2Chain(const ImageSpec& spec, const ImageRoots& roots) {
  if (absl::Status status = CheckSpec(spec); !status.ok()) return status;
  Chain chain(spec, roots);
  if (absl::Status status = chain.OpenFiles(); !status.ok()) return status;
  return chain.Build();
}

}  // namespace berth
