#include "netlink/device_access.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/blkpg.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace berth::netlink {
namespace {

constexpr size_t kMaxOpeners = 16;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

struct CloseDirectory {
  void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

std::string NodePath(const SystemPaths& paths, const BlockNode& node) {
  return absl::StrCat(paths.dev, "/", node.name);
}

std::string NumberOf(const struct stat& file) {
  return absl::StrCat(major(file.st_rdev), ":", minor(file.st_rdev));
}

absl::Status ErrnoError(absl::string_view what, int error) {
  const std::string text = absl::StrCat(what, ": ", strerror(error));
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(text);
  if (error == ENOENT || error == ENXIO || error == ENODEV) return absl::NotFoundError(text);
  return absl::InternalError(text);
}

bool IsPid(const char* name) { return absl::ascii_isdigit(name[0]); }

// Whether the process whose folder is `process` has one of `nodes` open.
bool HasOpen(const std::string& process, const std::vector<BlockNode>& nodes) {
  const Directory files(opendir((process + "/fd").c_str()));
  if (files == nullptr) return false;
  std::array<char, 4096> target;
  while (const dirent* entry = readdir(files.get())) {
    const std::string link = absl::StrCat(process, "/fd/", entry->d_name);
    const ssize_t size = readlink(link.c_str(), target.data(), target.size());
    if (size <= 0 || !absl::StrContains(absl::string_view(target.data(), static_cast<size_t>(size)), "dev/"))
      continue;
    struct stat file;
    if (stat(link.c_str(), &file) != 0 || !S_ISBLK(file.st_mode)) continue;
    const std::string number = NumberOf(file);
    const bool is_ours =
        std::any_of(nodes.begin(), nodes.end(), [&](const BlockNode& node) { return node.number == number; });
    if (is_ours) return true;
  }
  return false;
}

// The command's name, with anything unprintable replaced: processes choose their own.
std::string CommandOf(const std::string& process) {
  std::ifstream file(process + "/comm");
  std::string command;
  std::getline(file, command);
  for (char& c : command) {
    if (!absl::ascii_isprint(c)) c = '?';
  }
  return command;
}

}  // namespace

absl::Status CheckNode(const SystemPaths& paths, const BlockNode& node) {
  const std::string path = NodePath(paths, node);
  struct stat file;
  if (stat(path.c_str(), &file) != 0) {
    return ErrnoError(
        absl::StrCat("there is no ", path, " (block device ", node.number, "), which devtmpfs or udev makes"),
        errno);
  }
  if (!S_ISBLK(file.st_mode) || NumberOf(file) != node.number) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is not the block device ", node.number));
  }
  return absl::OkStatus();
}

absl::Status ReadLastBlock(const SystemPaths& paths, const BlockNode& disk, uint64_t size_bytes) {
  const std::string path = NodePath(paths, disk);
  const Descriptor fd(open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoError(absl::StrCat("cannot open ", path), errno);
  uint64_t size = 0;
  int block_size = 0;
  if (ioctl(fd.get(), BLKGETSIZE64, &size) != 0 || ioctl(fd.get(), BLKSSZGET, &block_size) != 0) {
    return ErrnoError(absl::StrCat("cannot ask ", path, " for its size"), errno);
  }
  if (size != size_bytes) {
    return absl::FailedPreconditionError(absl::StrCat(path, " has ", size, " bytes instead of ", size_bytes));
  }
  const auto length = static_cast<size_t>(block_size);
  if (length == 0 || size < length) return absl::OkStatus();
  const std::unique_ptr<void, void (*)(void*)> block(aligned_alloc(4096, (length + 4095) / 4096 * 4096),
                                                     free);
  if (block == nullptr) return absl::ResourceExhaustedError("no memory for one block");
  const uint64_t offset = (size / length - 1) * length;
  const ssize_t got = pread(fd.get(), block.get(), length, static_cast<off_t>(offset));
  if (got < 0) return ErrnoError(absl::StrCat("cannot read ", path, " at ", offset), errno);
  if (static_cast<size_t>(got) != length) {
    return absl::InternalError(
        absl::StrCat("read ", got, " of ", length, " bytes of ", path, " at ", offset));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> IsClaimed(const SystemPaths& paths, const BlockNode& disk) {
  const std::string path = NodePath(paths, disk);
  const Descriptor fd(open(path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
  if (fd.get() >= 0) return false;
  if (errno == EBUSY) return true;
  return ErrnoError(absl::StrCat("cannot open ", path), errno);
}

absl::Status DropPartitions(const SystemPaths& paths, const std::vector<BlockNode>& nodes) {
  const std::string path = NodePath(paths, nodes.front());
  const Descriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoError(absl::StrCat("cannot open ", path), errno);
  absl::Status status;
  for (auto node = nodes.begin() + 1; node != nodes.end(); ++node) {
    blkpg_partition partition = {};
    // "nbd0p1".
    if (!absl::SimpleAtoi(node->name.substr(nodes.front().name.size() + 1), &partition.pno)) continue;
    blkpg_ioctl_arg argument = {BLKPG_DEL_PARTITION, 0, sizeof(partition), &partition};
    if (ioctl(fd.get(), BLKPG, &argument) != 0) {
      status = ErrnoError(absl::StrCat("cannot drop ", NodePath(paths, *node)), errno);
    }
  }
  return status;
}

std::vector<std::string> FindOpeners(const SystemPaths& paths, const std::vector<BlockNode>& nodes) {
  std::vector<std::string> openers;
  const Directory processes(opendir(paths.proc.c_str()));
  if (processes == nullptr) return openers;
  while (const dirent* entry = readdir(processes.get())) {
    if (!IsPid(entry->d_name) || openers.size() >= kMaxOpeners) continue;
    const std::string process = absl::StrCat(paths.proc, "/", entry->d_name);
    if (HasOpen(process, nodes))
      openers.push_back(absl::StrCat(CommandOf(process), " (pid ", entry->d_name, ")"));
  }
  return openers;
}

}  // namespace berth::netlink
