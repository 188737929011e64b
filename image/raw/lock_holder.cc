#include "image/raw/lock_holder.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cctype>
#include <fstream>
#include <memory>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace berth {
namespace {

constexpr int kMostDescriptors = 50000;
constexpr size_t kMostHolders = 4;

// The names in `directory` that are numbers.
std::vector<std::string> Numbers(const std::string& directory) {
  std::vector<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> handle(opendir(directory.c_str()), closedir);
  if (handle == nullptr) return names;
  while (const dirent* entry = readdir(handle.get())) {
    if (std::isdigit(static_cast<unsigned char>(entry->d_name[0])) != 0) names.push_back(entry->d_name);
  }
  return names;
}

bool HoldsLock(const std::string& fdinfo) {
  std::ifstream file(fdinfo);
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, "lock:")) return true;
  }
  return false;
}

std::string Describe(const std::string& process) {
  std::string name;
  std::ifstream file(absl::StrCat("/proc/", process, "/comm"));
  std::getline(file, name);
  return absl::StrCat(name.empty() ? "an unknown program" : name, ", process ", process);
}

}  // namespace

std::string DescribeHolders(int fd) {
  struct stat image;
  if (fstat(fd, &image) != 0) return "";
  const std::string own_process = absl::StrCat(getpid());
  const std::string own_descriptor = absl::StrCat(fd);
  std::vector<std::string> holders;
  int looked_at = 0;
  for (const std::string& process : Numbers("/proc")) {
    const std::string base = absl::StrCat("/proc/", process);
    for (const std::string& descriptor : Numbers(base + "/fd")) {
      if (++looked_at > kMostDescriptors || holders.size() == kMostHolders) break;
      if (process == own_process && descriptor == own_descriptor) continue;
      struct stat info;
      if (stat(absl::StrCat(base, "/fd/", descriptor).c_str(), &info) != 0) continue;
      if (info.st_dev != image.st_dev || info.st_ino != image.st_ino) continue;
      if (!HoldsLock(absl::StrCat(base, "/fdinfo/", descriptor))) continue;
      holders.push_back(Describe(process));
      break;
    }
  }
  return holders.empty() ? "" : absl::StrCat(" (held by ", absl::StrJoin(holders, "; "), ")");
}

}  // namespace berth
