#include "netlink/device_state.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace berth::netlink {
namespace {

constexpr size_t kMaxMountPoints = 64;
constexpr uint64_t kSectorBytes = 512;

// The one line of a sysfs attribute, which has at most a page. Empty optional: there is no such attribute.
std::optional<std::string> ReadAttribute(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  std::array<char, 4096> page;
  const ssize_t size = read(fd, page.data(), page.size());
  close(fd);
  if (size < 0) return std::nullopt;
  absl::string_view text(page.data(), static_cast<size_t>(size));
  absl::ConsumeSuffix(&text, "\n");
  return std::string(text);
}

template <typename Number>
std::optional<Number> ReadNumber(const std::string& path) {
  const std::optional<std::string> text = ReadAttribute(path);
  Number number = 0;
  if (!text || !absl::SimpleAtoi(*text, &number)) return std::nullopt;
  return number;
}

// Names in a directory, sorted. Fails with errno.
std::optional<std::vector<std::string>> ListNames(const std::string& path) {
  DIR* const directory = opendir(path.c_str());
  if (directory == nullptr) return std::nullopt;
  std::vector<std::string> names;
  while (const dirent* entry = readdir(directory)) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  closedir(directory);
  std::sort(names.begin(), names.end());
  return names;
}

// N of "nbdN".
std::optional<uint32_t> ParseDiskName(absl::string_view name) {
  uint32_t index = 0;
  if (!absl::ConsumePrefix(&name, "nbd") || name.empty() || !absl::ascii_isdigit(name.front()) ||
      !absl::SimpleAtoi(name, &index)) {
    return std::nullopt;
  }
  return index;
}

std::string DiskPath(const SystemPaths& paths, uint32_t index) {
  return absl::StrCat(paths.sys, "/block/", DeviceName(index));
}

uint32_t PartitionNumber(absl::string_view name) {
  uint32_t number = 0;
  return absl::SimpleAtoi(name.substr(name.rfind('p') + 1), &number) ? number : 0;
}

// Names of the partitions' folders in the disk's, in the order of their numbers.
std::vector<std::string> ListPartitions(const std::string& disk_path, absl::string_view disk) {
  std::vector<std::string> partitions;
  const std::string prefix = absl::StrCat(disk, "p");
  for (std::string& name : ListNames(disk_path).value_or(std::vector<std::string>())) {
    if (absl::StartsWith(name, prefix) &&
        access(absl::StrCat(disk_path, "/", name, "/partition").c_str(), F_OK) == 0) {
      partitions.push_back(std::move(name));
    }
  }
  std::sort(partitions.begin(), partitions.end(), [](const std::string& a, const std::string& b) {
    return PartitionNumber(a) < PartitionNumber(b);
  });
  return partitions;
}

// Undoes the kernel's octal escapes for space, tab, newline, backslash and hash.
std::string Unescape(absl::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto is_octal = [&](size_t at) { return text[at] >= '0' && text[at] <= '7'; };
    if (text[i] == '\\' && i + 3 < text.size() && is_octal(i + 1) && is_octal(i + 2) && is_octal(i + 3)) {
      plain.push_back(
          static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0')));
      i += 3;
    } else {
      plain.push_back(text[i]);
    }
  }
  return plain;
}

bool HasNumber(const std::vector<BlockNode>& nodes, absl::string_view number) {
  return std::any_of(nodes.begin(), nodes.end(),
                     [&](const BlockNode& node) { return absl::string_view(node.number) == number; });
}

bool HasPath(const SystemPaths& paths, const std::vector<BlockNode>& nodes, absl::string_view path) {
  return std::any_of(nodes.begin(), nodes.end(),
                     [&](const BlockNode& node) { return path == absl::StrCat(paths.dev, "/", node.name); });
}

void Add(std::vector<std::string>& mount_points, std::string mount_point) {
  if (mount_points.size() < kMaxMountPoints) mount_points.push_back(std::move(mount_point));
}

}  // namespace

std::string DeviceName(uint32_t index) { return absl::StrCat("nbd", index); }

std::vector<BlockNode> ListNodes(const SystemPaths& paths, uint32_t index) {
  const std::string disk = DeviceName(index);
  const std::string disk_path = DiskPath(paths, index);
  std::vector<BlockNode> nodes;
  const std::optional<std::string> number = ReadAttribute(disk_path + "/dev");
  if (!number) return nodes;
  nodes.push_back({disk, *number});
  for (const std::string& partition : ListPartitions(disk_path, disk)) {
    std::optional<std::string> its = ReadAttribute(absl::StrCat(disk_path, "/", partition, "/dev"));
    if (its) nodes.push_back({partition, *std::move(its)});
  }
  return nodes;
}

bool HasNbdModule(const SystemPaths& paths) { return access((paths.sys + "/module/nbd").c_str(), F_OK) == 0; }

DeviceState InspectDisk(const SystemPaths& paths, uint32_t index) {
  const std::string disk_path = DiskPath(paths, index);
  DeviceState state;
  state.index = index;
  const std::optional<uint64_t> sectors = ReadNumber<uint64_t>(disk_path + "/size");
  if (!sectors) return state;
  state.exists = true;
  // A device too large for uint64_t is none of ours; it is not free either.
  state.size_bytes = *sectors > UINT64_MAX / kSectorBytes ? UINT64_MAX : *sectors * kSectorBytes;
  state.pid = ReadNumber<int32_t>(disk_path + "/pid");
  state.backend_identifier = ReadAttribute(disk_path + "/backend").value_or("");
  state.read_only = ReadNumber<int>(disk_path + "/ro").value_or(0) != 0;
  state.partitions = ListPartitions(disk_path, DeviceName(index));
  std::vector<std::string> folders = {disk_path};
  for (const std::string& partition : state.partitions)
    folders.push_back(absl::StrCat(disk_path, "/", partition));
  for (const std::string& folder : folders) {
    for (std::string& holder : ListNames(folder + "/holders").value_or(std::vector<std::string>())) {
      if (std::find(state.holders.begin(), state.holders.end(), holder) == state.holders.end()) {
        state.holders.push_back(std::move(holder));
      }
    }
  }
  return state;
}

absl::StatusOr<std::vector<std::string>> FindMountPoints(const SystemPaths& paths,
                                                         const std::vector<BlockNode>& nodes) {
  std::vector<std::string> mount_points;
  std::ifstream mounts(paths.proc + "/self/mountinfo");
  if (!mounts) return absl::InternalError(absl::StrCat("cannot read ", paths.proc, "/self/mountinfo"));
  std::string line;
  while (std::getline(mounts, line)) {
    // ID parent major:minor root mount-point options [tags …] - type source super-options
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ' ');
    if (fields.size() < 6) continue;
    const auto separator = std::find(fields.begin() + 6, fields.end(), "-");
    const bool by_name = absl::StartsWith(fields[2], "0:") && fields.end() - separator > 2 &&
                         HasPath(paths, nodes, Unescape(separator[2]));
    if (HasNumber(nodes, fields[2]) || by_name) Add(mount_points, Unescape(fields[4]));
  }
  if (mounts.bad()) return absl::InternalError(absl::StrCat("cannot read ", paths.proc, "/self/mountinfo"));
  std::ifstream swaps(paths.proc + "/swaps");  // Missing in a kernel without swap.
  while (std::getline(swaps, line)) {
    const absl::string_view path = absl::string_view(line).substr(0, line.find_first_of(" \t"));
    if (HasPath(paths, nodes, Unescape(path))) Add(mount_points, "swap");
  }
  return mount_points;
}

std::vector<std::string> FindLoops(const SystemPaths& paths, const std::vector<BlockNode>& nodes) {
  std::vector<std::string> loops;
  for (std::string& name : ListNames(paths.sys + "/block").value_or(std::vector<std::string>())) {
    if (!absl::StartsWith(name, "loop")) continue;
    const std::optional<std::string> file =
        ReadAttribute(absl::StrCat(paths.sys, "/block/", name, "/loop/backing_file"));
    if (file && HasPath(paths, nodes, *file)) loops.push_back(std::move(name));
  }
  return loops;
}

absl::StatusOr<std::vector<uint32_t>> ListDisks(const SystemPaths& paths) {
  std::vector<uint32_t> indexes;
  const std::optional<std::vector<std::string>> names = ListNames(paths.sys + "/block");
  if (!names) {
    return absl::InternalError(absl::StrCat("cannot read ", paths.sys, "/block: ", strerror(errno)));
  }
  for (const std::string& name : *names) {
    if (const std::optional<uint32_t> index = ParseDiskName(name)) indexes.push_back(*index);
  }
  std::sort(indexes.begin(), indexes.end());
  return indexes;
}

}  // namespace berth::netlink
