#include "tests/kernel/test_disk.h"

#include <stdlib.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace berth {
namespace {

constexpr char kScsiDriver[] = "/sys/bus/pseudo/drivers/scsi_debug";

// The name of the disk that the kernel found behind scsi_debug's one adapter; it looks for it on a thread of
// its own.
std::string WaitForScsiDisk() {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (absl::Now() < deadline) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator("/sys/block", error)) {
      const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
      const std::string name = entry.path().filename().string();
      // The capacity comes after the name.
      if (target.find("/pseudo_0/adapter") != std::string::npos && SysfsWord(entry.path() / "size") != "0" &&
          std::filesystem::exists("/dev/" + name, error)) {
        return name;
      }
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  ADD_FAILURE() << "no disk of scsi_debug after a minute";
  return "";
}

bool WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text << std::flush;
  EXPECT_TRUE(file.good()) << path << " does not take " << text;
  return file.good();
}

}  // namespace

bool Shell(const std::string& command) {
  const int status = std::system(command.c_str());
  EXPECT_EQ(status, 0) << command;
  return status == 0;
}

std::string SysfsWord(const std::string& path) {
  std::string word;
  std::ifstream(path) >> word;
  return word;
}

TestDisk TestDisk::Scsi(int mib, int sector_size) {
  if (!Shell(absl::StrCat("modprobe scsi_debug delay=0 lbpu=1 lbpws=1 unmap_granularity=1 dev_size_mb=", mib,
                          " sector_size=", sector_size, " && modprobe sd_mod"))) {
    return TestDisk("", "");
  }
  const std::string name = WaitForScsiDisk();
  return TestDisk(name, "udevadm settle 2>/dev/null; modprobe -r scsi_debug");
}

TestDisk TestDisk::Plain(int mib) {
  const std::string name = "nullb0";
  const std::string folder = "/sys/kernel/config/nullb/" + name;
  if (!Shell("modprobe configfs") ||
      !Shell("mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config") ||
      !Shell("modprobe null_blk nr_devices=0") || !Shell("mkdir " + folder)) {
    return TestDisk("", "");
  }
  WriteFile(folder + "/memory_backed", "1");
  WriteFile(folder + "/blocksize", "4096");
  WriteFile(folder + "/size", std::to_string(mib));
  // As large as the disk: null_blk loses data, and now and then the kernel, where it has to make room in a
  // cache.
  WriteFile(folder + "/cache_size", std::to_string(mib));
  WriteFile(folder + "/fua", "0");
  WriteFile(folder + "/power", "1");
  return TestDisk(name, "rmdir " + folder);
}

TestDisk TestDisk::Loop(uint64_t size) {
  char backing[] = "/dev/shm/backing-XXXXXX";
  const int fd = mkstemp(backing);
  EXPECT_GE(fd, 0);
  if (fd >= 0) close(fd);
  const std::string output = std::string(backing) + ".name";
  if (!Shell(absl::StrCat("truncate -s ", size, " ", backing, " && losetup --find --show ", backing, " >",
                          output))) {
    return TestDisk("", absl::StrCat("rm -f ", backing, " ", output));
  }
  const std::string name = std::filesystem::path(SysfsWord(output)).filename().string();
  return TestDisk(name, absl::StrCat("losetup --detach /dev/", name, "; rm ", backing, " ", output));
}

TestDisk::TestDisk(TestDisk&& other) noexcept
    : name_(std::exchange(other.name_, "")), removal_(std::exchange(other.removal_, "")) {}

TestDisk::~TestDisk() {
  if (!removal_.empty()) Shell(removal_);
}

uint64_t TestDisk::flushes() const {
  std::ifstream file("/sys/block/" + name_ + "/stat");
  uint64_t field = 0;
  for (int i = 0; i < 16; ++i) EXPECT_TRUE(file >> field) << name_;
  return field;
}

uint64_t TestDisk::mapped_sectors() const {
  // Ranges, as in 0-15,64-127; an empty line where there is none.
  uint64_t sectors = 0;
  const std::string map = SysfsWord(std::string(kScsiDriver) + "/map");
  for (absl::string_view range : absl::StrSplit(map, ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> ends =
        absl::StrSplit(range, absl::MaxSplits('-', 1));
    uint64_t first = 0, last = 0;
    EXPECT_TRUE(absl::SimpleAtoi(ends.first, &first)) << map;
    EXPECT_TRUE(absl::SimpleAtoi(ends.second.empty() ? ends.first : ends.second, &last)) << map;
    sectors += last - first + 1;
  }
  return sectors;
}

}  // namespace berth
