#include "control/berth_nbd/image_source.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "control/berth_nbd/format_probe.h"
#include "control/berth_nbd/guessed_raw.h"
#include "control/berth_nbd/image_tree.h"
#include "control/berth_nbd/option_tree.h"
#include "image/filter/detect_zeroes.h"
#include "image/filter/slice.h"
#include "image/io/reactor_pool.h"
#include "image/io/unique_fd.h"
#include "image/opener/image_roots.h"
#include "image/opener/temporary_overlay.h"
#include "image/partition/partition_table.h"

namespace berth::control {
namespace {

absl::Status About(const std::string& file, const absl::Status& status) {
  const std::string quoted = absl::StrCat("\"", file, "\"");
  if (absl::string_view(status.message()).find(quoted) != absl::string_view::npos) return status;
  return absl::Status(status.code(), absl::StrCat(quoted, ": ", status.message()));
}

Task<absl::Status> ReadDevice(BlockDevice& device, Reactor& reactor, uint64_t offset,
                              absl::Span<uint8_t> out) {
  absl::StatusOr<std::unique_ptr<BlockChannel>> channel = device.OpenChannel(reactor);
  if (!channel.ok()) co_return channel.status();
  const IoResult result = co_await (*channel)->Read(offset, out);
  if (result.ok()) co_return absl::OkStatus();
  co_return absl::ErrnoToStatus(result.error, absl::StrCat("read at ", offset));
}

struct Guess {
  ImageFormat format = ImageFormat::kRaw;
  std::string warning;
};

absl::StatusOr<Guess> GuessFormat(const std::string& file) {
  absl::StatusOr<UniqueFd> fd = ImageRoots::Anywhere().OpenFile(file, O_RDONLY | O_CLOEXEC);
  if (!fd.ok()) return fd.status();
  std::array<uint8_t, kProbedBytes> head;
  const ssize_t got = pread(fd->get(), head.data(), head.size(), 0);
  if (got < 0) return absl::ErrnoToStatus(errno, absl::StrCat("read \"", file, "\""));
  const absl::string_view format = ProbeFormat(absl::MakeConstSpan(head.data(), static_cast<size_t>(got)));
  if (format == "qcow2") return Guess{ImageFormat::kQcow2, ""};
  if (format.empty()) {
    return Guess{
        ImageFormat::kRaw,
        absl::StrCat("WARNING: \"", file,
                     "\" was guessed to be raw, as -f does not say what it is; guessing is unsafe for "
                     "raw images, so what would change that guess is not written to their first 512 "
                     "bytes. -f raw ends both.")};
  }
  return absl::UnimplementedError(
      absl::StrCat("\"", file, "\" looks like an image of the format ", format,
                   "; known are raw and qcow2, and -f raw serves the file's bytes as they are"));
}

absl::StatusOr<ImageFormat> NamedFormat(const std::string& name) {
  // qemu's names of the drivers below a raw image.
  if (name == "raw" || name == "file" || name == "host_device") return ImageFormat::kRaw;
  if (name == "qcow2") return ImageFormat::kQcow2;
  if (name == "luks") {
    return absl::InvalidArgumentError(
        "-f is 'luks', which needs a secret: --object secret,id=ID,… --image-opts "
        "driver=luks,key-secret=ID,file.filename=FILE");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("-f is '", name.substr(0, 200), "'; it must be raw or qcow2"));
}

struct Opened {
  std::shared_ptr<BlockDevice> device;
  bool flat = false;  // A raw image without an overlay.
  std::string warning;
};

absl::StatusOr<Opened> OpenFile(const CommandLine& line, const Objects& objects) {
  ImageModes modes;
  modes.cache = line.cache;
  modes.discard = line.discard;
  // What lies under an overlay is not changed.
  modes.read_only = line.read_only || line.temporary_overlay;
  modes.snapshot = line.snapshot;
  absl::StatusOr<std::shared_ptr<BlockDevice>> device;
  Guess guess;
  bool flat = false;
  if (line.image_options || absl::StartsWith(line.file, "json:")) {
    const absl::StatusOr<OptionTree> tree = OptionTree::Parse(line.file, "");
    if (!tree.ok()) return tree.status();
    device = OpenImageTree(*tree, modes, objects);
  } else if (line.format.has_value()) {
    const absl::StatusOr<ImageFormat> format = NamedFormat(*line.format);
    if (!format.ok()) return format.status();
    flat = *format == ImageFormat::kRaw;
    device = OpenImageFile(*format, line.file, modes);
  } else {
    absl::StatusOr<Guess> guessed = GuessFormat(line.file);
    if (!guessed.ok()) return guessed.status();
    guess = *std::move(guessed);
    flat = guess.format == ImageFormat::kRaw;
    device = OpenImageFile(guess.format, line.file, modes);
  }
  if (!device.ok()) return device.status();
  if (line.temporary_overlay) {
    const char* directory = getenv("TMPDIR");
    device = OpenTemporaryOverlay(*std::move(device), directory == nullptr ? "/var/tmp" : directory);
    if (!device.ok()) return device.status();
  } else if (!guess.warning.empty() && !line.read_only) {
    *device = std::make_shared<GuessedRawDevice>(*std::move(device));
  }
  return Opened{*std::move(device), flat && !line.temporary_overlay, std::move(guess.warning)};
}

absl::StatusOr<std::shared_ptr<BlockDevice>> ShowPart(const CommandLine& line, Reactor& reactor,
                                                      std::shared_ptr<BlockDevice> device) {
  Partition part = {line.offset, 0};
  if (line.partition.has_value()) {
    const auto read = [&device, &reactor](uint64_t offset, absl::Span<uint8_t> out) {
      return RunOn(reactor, [&] { return ReadDevice(*device, reactor, offset, out); });
    };
    absl::StatusOr<Partition> found = FindPartition(device->size(), read, *line.partition);
    if (!found.ok()) {
      return absl::Status(found.status().code(),
                          absl::StrCat("-P is '", *line.partition, "': ", found.status().message()));
    }
    part = *found;
  }
  if (part == Partition{}) return device;
  absl::StatusOr<std::unique_ptr<SliceDevice>> slice =
      SliceDevice::Create(std::move(device), part.offset, part.length);
  if (!slice.ok()) {
    return absl::Status(slice.status().code(),
                        absl::StrCat("-o is '", line.offset, "': ", slice.status().message()));
  }
  return std::shared_ptr<BlockDevice>(*std::move(slice));
}

}  // namespace

absl::StatusOr<ServedImage> OpenServedImage(const CommandLine& line, const Objects& objects,
                                            Reactor& reactor) {
  ServedImage image;
  absl::StatusOr<Opened> opened = OpenFile(line, objects);
  if (!opened.ok()) return About(line.file, opened.status());
  image.warning = std::move(opened->warning);
  absl::StatusOr<std::shared_ptr<BlockDevice>> device = ShowPart(line, reactor, std::move(opened->device));
  if (!device.ok()) return About(line.file, device.status());
  if (line.detect_zeroes != ZeroDetection::kOff) {
    *device = std::make_shared<DetectZeroesDevice>(*std::move(device), line.detect_zeroes);
  }
  absl::StatusOr<std::shared_ptr<ServedDevice>> served =
      ServedDevice::Create(*std::move(device), opened->flat, line.allocation_depth, line.bitmaps);
  if (!served.ok()) return About(line.file, served.status());
  image.device = *std::move(served);
  return image;
}

}  // namespace berth::control
