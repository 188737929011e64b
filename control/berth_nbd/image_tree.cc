#include "control/berth_nbd/image_tree.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "image/filter/detect_zeroes.h"
#include "image/filter/rate_limit.h"
#include "image/filter/slice.h"
#include "image/luks/luks_image.h"
#include "image/opener/image_roots.h"
#include "image/opener/internal_snapshots.h"
#include "image/opener/opener.h"
#include "image/qcow2/qcow2_device.h"

namespace berth::control {
namespace {

using DeviceOr = absl::StatusOr<std::shared_ptr<BlockDevice>>;

constexpr char kDrivers[] = "file, host_device, raw, qcow2, luks, null-co or throttle";
constexpr uint64_t kNullSize = uint64_t{1} << 30;  // qemu's.

absl::StatusOr<std::string> Needed(const OptionTree& tree, const std::string& key) {
  absl::StatusOr<std::optional<std::string>> text = tree.Text(key);
  if (!text.ok()) return text.status();
  if (!text->has_value() || (*text)->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(tree.Name(key), " is missing"));
  }
  return **text;
}

absl::Status WrongChoice(const OptionTree& tree, const std::string& key, const std::string& value,
                         absl::string_view allowed) {
  return absl::InvalidArgumentError(
      absl::StrCat(tree.Name(key), " is '", value.substr(0, 200), "'; it must be ", allowed));
}

class TreeOpener {
 public:
  explicit TreeOpener(const Objects& objects) : objects_(objects) {}

  // `driver`: where the tree does not say.
  DeviceOr Open(const OptionTree& tree, ImageModes modes, const std::string& driver = "");

 private:
  absl::Status ReadModes(const OptionTree& tree, ImageModes* modes);
  DeviceOr OpenDriver(const std::string& driver, const OptionTree& tree, const ImageModes& modes);
  DeviceOr OpenFileDriver(const OptionTree& tree, ImageModes modes);
  DeviceOr OpenRaw(const OptionTree& tree, const ImageModes& modes);
  DeviceOr OpenQcow2(const OptionTree& tree, const ImageModes& modes);
  DeviceOr OpenQcow2Over(const OptionTree& backing, const std::string& path, const ImageModes& modes);
  absl::StatusOr<Secret> SecretOf(const OptionTree& tree);
  DeviceOr OpenLuks(const OptionTree& tree, const ImageModes& modes);
  DeviceOr OpenNull(const OptionTree& tree, const ImageModes& modes);
  DeviceOr OpenThrottle(const OptionTree& tree, const ImageModes& modes);
  // The device that `tree.file` describes.
  DeviceOr OpenBelow(const OptionTree& tree, ImageModes modes);

  const Objects& objects_;
};

absl::Status TreeOpener::ReadModes(const OptionTree& tree, ImageModes* modes) {
  for (const char* name : {"node-name", "auto-read-only"}) {
    if (absl::StatusOr<std::optional<std::string>> unused = tree.Text(name); !unused.ok())
      return unused.status();
  }
  const absl::StatusOr<bool> read_only = tree.Switch("read-only", modes->read_only);
  if (!read_only.ok()) return read_only.status();
  // -r and -l hold for all of the image.
  modes->read_only |= *read_only;
  const absl::StatusOr<bool> share = tree.Switch("force-share", modes->lock == LockMode::kNone);
  if (!share.ok()) return share.status();
  if (*share) modes->lock = LockMode::kNone;
  const absl::StatusOr<std::optional<std::string>> discard = tree.Text("discard");
  if (!discard.ok()) return discard.status();
  if (discard->has_value()) {
    const std::string& value = **discard;
    if (value != "unmap" && value != "on" && value != "ignore" && value != "off") {
      return WrongChoice(tree, "discard", value, "unmap (on) or ignore (off)");
    }
    modes->discard = value == "unmap" || value == "on" ? DiscardMode::kUnmap : DiscardMode::kIgnore;
  }
  const OptionTree* cache = tree.Child("cache");
  if (cache == nullptr) return absl::OkStatus();
  const absl::StatusOr<bool> direct = cache->Switch("direct", UsesDirectIo(modes->cache));
  if (!direct.ok()) return direct.status();
  const absl::StatusOr<bool> no_flush = cache->Switch("no-flush", modes->cache == CacheMode::kUnsafe);
  if (!no_flush.ok()) return no_flush.status();
  if (*no_flush) {
    modes->cache = CacheMode::kUnsafe;
  } else if (WritesAreDurable(modes->cache)) {
    modes->cache = *direct ? CacheMode::kDirectsync : CacheMode::kWritethrough;
  } else {
    modes->cache = *direct ? CacheMode::kNone : CacheMode::kWriteback;
  }
  return cache->CheckAllRead();
}

DeviceOr TreeOpener::Open(const OptionTree& tree, ImageModes modes, const std::string& otherwise) {
  absl::StatusOr<std::optional<std::string>> driver = tree.Text("driver");
  if (!driver.ok()) return driver.status();
  if (!driver->has_value()) {
    if (otherwise.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(tree.Name("driver"), " is missing; it must be ", kDrivers));
    }
    *driver = otherwise;
  }
  if (absl::Status status = ReadModes(tree, &modes); !status.ok()) return status;
  const absl::StatusOr<std::optional<std::string>> zeroes = tree.Text("detect-zeroes");
  if (!zeroes.ok()) return zeroes.status();
  DeviceOr device = OpenDriver(**driver, tree, modes);
  if (!device.ok()) return device;
  if (absl::Status status = tree.CheckAllRead(); !status.ok()) return status;
  const std::string detection = zeroes->value_or("off");
  if (detection == "off") return device;
  if (detection != "on" && detection != "unmap")
    return WrongChoice(tree, "detect-zeroes", detection, "off, on or unmap");
  if (detection == "unmap" && modes.discard != DiscardMode::kUnmap) {
    return WrongChoice(tree, "detect-zeroes", detection, "off or on without discard=unmap");
  }
  return std::make_shared<DetectZeroesDevice>(*std::move(device),
                                              detection == "on" ? ZeroDetection::kOn : ZeroDetection::kUnmap);
}

DeviceOr TreeOpener::OpenDriver(const std::string& driver, const OptionTree& tree, const ImageModes& modes) {
  if (modes.snapshot.has_value() && driver != "qcow2") {
    return absl::InvalidArgumentError(
        absl::StrCat("-l needs a qcow2 image, and the driver is ", driver.substr(0, 200)));
  }
  if (driver == "file" || driver == "host_device") return OpenFileDriver(tree, modes);
  if (driver == "raw") return OpenRaw(tree, modes);
  if (driver == "qcow2") return OpenQcow2(tree, modes);
  if (driver == "luks") return OpenLuks(tree, modes);
  if (driver == "null-co" || driver == "null-aio") return OpenNull(tree, modes);
  if (driver == "throttle") return OpenThrottle(tree, modes);
  return absl::UnimplementedError(
      absl::StrCat(tree.Name("driver"), " is '", driver.substr(0, 200), "'; it must be ", kDrivers));
}

DeviceOr TreeOpener::OpenFileDriver(const OptionTree& tree, ImageModes modes) {
  const absl::StatusOr<std::string> path = Needed(tree, "filename");
  if (!path.ok()) return path.status();
  if (absl::StatusOr<std::optional<std::string>> aio = tree.Text("aio"); !aio.ok()) return aio.status();
  const absl::StatusOr<std::optional<std::string>> locking = tree.Text("locking");
  if (!locking.ok()) return locking.status();
  const std::string lock = locking->value_or("auto");
  if (lock != "auto" && lock != "on" && lock != "off")
    return WrongChoice(tree, "locking", lock, "auto, on or off");
  if (lock == "off") modes.lock = LockMode::kNone;
  return OpenImageFile(ImageFormat::kRaw, *path, modes);
}

DeviceOr TreeOpener::OpenBelow(const OptionTree& tree, ImageModes modes) {
  const OptionTree* file = tree.Child("file");
  if (file == nullptr) return absl::InvalidArgumentError(absl::StrCat(tree.Name("file"), ".… is missing"));
  modes.snapshot.reset();
  return Open(*file, modes, "file");
}

DeviceOr TreeOpener::OpenRaw(const OptionTree& tree, const ImageModes& modes) {
  const absl::StatusOr<std::optional<uint64_t>> offset = tree.Bytes("offset");
  if (!offset.ok()) return offset.status();
  const absl::StatusOr<std::optional<uint64_t>> size = tree.Bytes("size");
  if (!size.ok()) return size.status();
  DeviceOr below = OpenBelow(tree, modes);
  if (!below.ok() || (offset->value_or(0) == 0 && size->value_or(0) == 0)) return below;
  absl::StatusOr<std::unique_ptr<SliceDevice>> slice =
      SliceDevice::Create(*std::move(below), offset->value_or(0), size->value_or(0));
  if (!slice.ok()) return slice.status();
  return std::shared_ptr<BlockDevice>(*std::move(slice));
}

DeviceOr TreeOpener::OpenQcow2(const OptionTree& tree, const ImageModes& modes) {
  const OptionTree* file = tree.Child("file");
  if (file == nullptr) return absl::InvalidArgumentError(absl::StrCat(tree.Name("file"), ".… is missing"));
  ImageModes file_modes = modes;
  if (absl::Status status = ReadModes(*file, &file_modes); !status.ok()) return status;
  const absl::StatusOr<std::optional<std::string>> driver = file->Text("driver");
  if (!driver.ok()) return driver.status();
  if (const std::string name = driver->value_or("file"); name != "file" && name != "host_device") {
    return WrongChoice(*file, "driver", name, "file or host_device: a qcow2 image lies in a file");
  }
  const absl::StatusOr<std::string> path = Needed(*file, "filename");
  if (!path.ok()) return path.status();
  if (absl::StatusOr<std::optional<std::string>> locking = file->Text("locking"); !locking.ok()) {
    return locking.status();
  } else if (locking->value_or("auto") == "off") {
    file_modes.lock = LockMode::kNone;
  }
  if (absl::Status status = file->CheckAllRead(); !status.ok()) return status;
  if (const OptionTree* encrypt = tree.Child("encrypt")) {
    const absl::StatusOr<std::optional<std::string>> format = encrypt->Text("format");
    if (!format.ok()) return format.status();
    if (const std::string name = format->value_or("luks"); name != "luks" && name != "aes") {
      return WrongChoice(*encrypt, "format", name, "luks or aes");
    }
    absl::StatusOr<Secret> secret = SecretOf(*encrypt);
    if (!secret.ok()) return secret.status();
    if (absl::Status status = encrypt->CheckAllRead(); !status.ok()) return status;
    file_modes.secret = *std::move(secret);
  }
  const OptionTree* backing = tree.Child("backing");
  return backing == nullptr ? OpenImageFile(ImageFormat::kQcow2, *path, file_modes)
                            : OpenQcow2Over(*backing, *path, file_modes);
}

// With another backing image than the one that it names, or, where `backing` is null, none.
DeviceOr TreeOpener::OpenQcow2Over(const OptionTree& backing, const std::string& path,
                                   const ImageModes& modes) {
  if (modes.snapshot.has_value()) {
    return absl::UnimplementedError(
        "-l and backing.… do not go together: a snapshot has the image's own chain");
  }
  if (!modes.secret.empty()) {
    return absl::UnimplementedError(
        "encrypt.… and backing.… do not go together: the chain is the image's own");
  }
  ImageModes below = modes;
  Qcow2Files files;
  if (!backing.IsNull()) {
    below.read_only = true;
    DeviceOr opened = Open(backing, below, "file");
    if (!opened.ok()) return opened;
    files.backing = *std::move(opened);
  }
  DeviceOr image = OpenImageFile(ImageFormat::kRaw, path, modes);
  if (!image.ok()) return image;
  files.image = *std::move(image);
  absl::StatusOr<qcow2::Header> header = ReadQcow2Header(*files.image);
  if (!header.ok())
    return absl::Status(header.status().code(), absl::StrCat("\"", path, "\": ", header.status().message()));
  if (header->has_data_file()) {
    return absl::UnimplementedError(
        absl::StrCat("\"", path, "\" has an external data file, which does not go together with backing.…"));
  }
  if (files.backing == nullptr) header->backing_file.clear();
  Qcow2Options options;
  options.writable = !modes.read_only;
  options.durable_writes = WritesAreDurable(modes.cache);
  options.unmap = modes.discard == DiscardMode::kUnmap;
  absl::StatusOr<std::shared_ptr<Qcow2Device>> device = Qcow2Device::Open(std::move(files), *header, options);
  if (!device.ok())
    return absl::Status(device.status().code(), absl::StrCat("\"", path, "\": ", device.status().message()));
  return std::shared_ptr<BlockDevice>(*std::move(device));
}

// What `tree.key-secret` names.
absl::StatusOr<Secret> TreeOpener::SecretOf(const OptionTree& tree) {
  const absl::StatusOr<std::string> id = Needed(tree, "key-secret");
  if (!id.ok()) return id.status();
  absl::StatusOr<Secret> secret = objects_.FindSecret(*id);
  if (secret.ok()) return secret;
  return absl::NotFoundError(absl::StrCat(tree.Name("key-secret"), ": ", secret.status().message()));
}

DeviceOr TreeOpener::OpenLuks(const OptionTree& tree, const ImageModes& modes) {
  const absl::StatusOr<Secret> secret = SecretOf(tree);
  if (!secret.ok()) return secret.status();
  DeviceOr below = OpenBelow(tree, modes);
  if (!below.ok()) return below;
  return luks::OpenLuksImage(*std::move(below), *secret);
}

DeviceOr TreeOpener::OpenNull(const OptionTree& tree, const ImageModes& modes) {
  const absl::StatusOr<std::optional<uint64_t>> size = tree.Bytes("size");
  if (!size.ok()) return size.status();
  if (absl::StatusOr<bool> zeroes = tree.Switch("read-zeroes", true); !zeroes.ok()) return zeroes.status();
  ImageSpec spec;
  spec.format = ImageFormat::kNull;
  spec.size = size->value_or(kNullSize);
  spec.read_only = modes.read_only;
  return OpenImage(spec, ImageRoots::Anywhere());
}

DeviceOr TreeOpener::OpenThrottle(const OptionTree& tree, const ImageModes& modes) {
  const absl::StatusOr<std::string> id = Needed(tree, "throttle-group");
  if (!id.ok()) return id.status();
  const absl::StatusOr<RateLimits> limits = objects_.FindLimits(*id);
  if (!limits.ok()) {
    return absl::NotFoundError(absl::StrCat(tree.Name("throttle-group"), ": ", limits.status().message()));
  }
  DeviceOr below = OpenBelow(tree, modes);
  if (!below.ok()) return below;
  return std::make_shared<RateLimitDevice>(*std::move(below), *limits);
}

}  // namespace

DeviceOr OpenImageFile(ImageFormat format, const std::string& path, const ImageModes& modes) {
  ImageSpec spec;
  spec.format = format;
  spec.path = path;
  spec.cache = modes.cache;
  spec.discard = modes.discard;
  spec.lock = modes.lock;
  spec.read_only = modes.read_only;
  spec.secret = modes.secret;
  if (modes.snapshot.has_value()) {
    const SnapshotChoice& choice = *modes.snapshot;
    if (format != ImageFormat::kQcow2) {
      return absl::InvalidArgumentError("-l needs a qcow2 image; others have no snapshots");
    }
    absl::StatusOr<std::string> id = choice.id_or_name.value_or("");
    if (!choice.id_or_name.has_value()) {
      id = FindInternalSnapshot(path, ImageRoots::Anywhere(), choice.id, choice.name);
    }
    if (!id.ok()) return id.status();
    if (id->empty())
      return absl::InvalidArgumentError("-l is ''; it must be the id or the name of a snapshot");
    spec.snapshot = *std::move(id);
  }
  return OpenImage(spec, ImageRoots::Anywhere());
}

DeviceOr OpenImageTree(const OptionTree& tree, const ImageModes& modes, const Objects& objects) {
  return TreeOpener(objects).Open(tree, modes);
}

}  // namespace berth::control
