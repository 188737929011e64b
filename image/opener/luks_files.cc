#include "image/opener/luks_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "image/io/file.h"
#include "image/luks/key_slots.h"
#include "image/opener/disk_space.h"
#include "image/opener/new_file.h"

namespace berth {
namespace {

absl::Status ReadAt(const File& file, uint64_t offset, absl::Span<uint8_t> out) {
  while (!out.empty()) {
    const ssize_t length = pread(file.fd(), out.data(), out.size(), static_cast<off_t>(offset));
    if (length < 0 && errno == EINTR) continue;
    if (length <= 0) {
      return absl::ErrnoToStatus(length < 0 ? errno : EIO, absl::StrCat("cannot read \"", file.path(), "\""));
    }
    out.remove_prefix(static_cast<size_t>(length));
    offset += static_cast<uint64_t>(length);
  }
  return absl::OkStatus();
}

absl::Status WriteHeader(int fd, const std::string& path, absl::Span<const uint8_t> bytes) {
  for (off_t offset = 0; !bytes.empty();) {
    const ssize_t length = pwrite(fd, bytes.data(), bytes.size(), offset);
    if (length < 0 && errno == EINTR) continue;
    if (length <= 0) {
      return absl::ErrnoToStatus(length < 0 ? errno : EIO, absl::StrCat("cannot write \"", path, "\""));
    }
    bytes.remove_prefix(static_cast<size_t>(length));
    offset += length;
  }
  return absl::OkStatus();
}

absl::StatusOr<LuksFileInfo> Inspect(const File& file) {
  absl::StatusOr<ImageFileInfo> info = InspectFile(file);
  if (!info.ok()) return info.status();
  std::vector<uint8_t> bytes(std::min<uint64_t>(luks::kHeaderBytes, info->size));
  if (absl::Status status = ReadAt(file, 0, absl::MakeSpan(bytes)); !status.ok()) return status;
  absl::StatusOr<luks::Header> header = luks::DecodeHeader(bytes, info->size);
  if (!header.ok()) {
    return absl::Status(header.status().code(),
                        absl::StrCat("\"", file.path(), "\": ", header.status().message()));
  }
  info->size = (info->size - header->payload_offset()) / luks::kSectorBytes * luks::kSectorBytes;
  return LuksFileInfo{*info, *std::move(header)};
}

// The image that is there already: an answer to a repeated request, or in the way.
absl::StatusOr<LuksFileInfo> TakeExisting(const ImageRoots& roots, const std::string& path, uint64_t size,
                                          const Secret& secret) {
  const auto other = [&path](absl::string_view why) {
    return absl::AlreadyExistsError(absl::StrCat("\"", path, "\" exists and is not such an image: ", why));
  };
  absl::StatusOr<File> file = OpenRegular(roots, path, O_RDONLY);
  if (!file.ok()) return other(file.status().message());
  absl::StatusOr<LuksFileInfo> info = Inspect(*file);
  if (!info.ok()) return other(info.status().message());
  if (info->file.size != size) {
    return other(absl::StrCat("its disk has ", info->file.size, " bytes, not ", size));
  }
  const auto read = [&file](uint64_t offset, absl::Span<uint8_t> out) { return ReadAt(*file, offset, out); };
  const absl::Status opened =
      luks::Unlock(info->header, secret, read, absl::Now() + luks::kUnlockTimeout).status();
  if (!opened.ok()) return other(opened.message());
  return info;
}

}  // namespace

absl::StatusOr<LuksFileInfo> CreateLuksImage(const ImageRoots& roots, const std::string& path, uint64_t size,
                                             const luks::CreateOptions& options, const Secret& secret) {
  if (size == 0 || size % luks::kSectorBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("the disk of a LUKS image cannot have ", size,
                                                   " bytes; it has a multiple of ", luks::kSectorBytes));
  }
  if (absl::Status status = CheckImageSize(path, size); !status.ok()) return status;
  absl::StatusOr<NewFile> file = NewFile::Create(roots, path);
  absl::Status status = file.status();
  if (status.ok()) {
    const absl::StatusOr<std::vector<uint8_t>> header = luks::MakeHeader(options, secret);
    if (!header.ok()) return header.status();
    status = SetFileSize(file->fd(), path, header->size() + size);
    if (status.ok()) status = WriteHeader(file->fd(), path, *header);
    if (!status.ok()) return status;
    status = file->Publish();
  } else if (absl::IsAlreadyExists(status)) {
    // Whoever made it may have died before this.
    if (absl::Status durable = MakeNameDurable(roots, path); !durable.ok()) return durable;
  }
  if (absl::IsAlreadyExists(status)) return TakeExisting(roots, path, size, secret);
  if (!status.ok()) return status;
  return InspectLuksImage(roots, path);
}

absl::StatusOr<LuksFileInfo> InspectLuksImage(const ImageRoots& roots, const std::string& path) {
  absl::StatusOr<File> file = OpenRegular(roots, path, O_RDONLY);
  if (!file.ok()) return file.status();
  return Inspect(*file);
}

}  // namespace berth
