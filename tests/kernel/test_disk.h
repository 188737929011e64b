// Disks of the kernel's own making, for tests inside the virtual machine: root, and nobody else's disks
// about.
#ifndef BERTH_TESTS_KERNEL_TEST_DISK_H_
#define BERTH_TESTS_KERNEL_TEST_DISK_H_

#include <cstdint>
#include <string>

namespace berth {

// Runs a shell command; false, with a test failure that shows it, where it fails.
bool Shell(const std::string& command);

// The first word of a file of sysfs, empty where there is none.
std::string SysfsWord(const std::string& path);

// A disk in memory that a module simulates. Lifetime: gone with the object; nothing has it open by then.
class TestDisk {
 public:
  // A SCSI disk of `mib` MiB with a volatile cache, FUA, thin provisioning and WRITE SAME; one at a time.
  static TestDisk Scsi(int mib, int sector_size = 512);
  // A disk of 4 KiB blocks with a volatile cache that knows neither FUA, nor discard, nor write zeroes; one
  // at a time.
  static TestDisk Plain(int mib);
  // A loop device of 512-byte sectors over a sparse file of `size` bytes on tmpfs.
  static TestDisk Loop(uint64_t size);

  TestDisk(TestDisk&& other) noexcept;
  TestDisk& operator=(TestDisk&&) = delete;
  ~TestDisk();

  // /dev/NAME; empty where it could not be made, which is a test failure.
  std::string path() const { return "/dev/" + name_; }
  const std::string& name() const { return name_; }
  std::string queue(const std::string& file) const { return "/sys/block/" + name_ + "/queue/" + file; }

  // Flush requests that reached the disk so far (the 16th field of /sys/block/NAME/stat).
  uint64_t flushes() const;
  // 512-byte sectors that have space, of a SCSI disk.
  uint64_t mapped_sectors() const;

 private:
  TestDisk(std::string name, std::string removal) : name_(std::move(name)), removal_(std::move(removal)) {}

  std::string name_;
  std::string removal_;  // A shell command.
};

}  // namespace berth

#endif  // BERTH_TESTS_KERNEL_TEST_DISK_H_
