// DiskServer: the real berthd in the machine, and what the kernel tests do with it and with its devices.
#ifndef BERTH_TESTS_KERNEL_DISK_SERVER_H_
#define BERTH_TESTS_KERNEL_DISK_SERVER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "control/berthd_process.h"

namespace berth::kernel_test {

constexpr uint64_t kMebibyte = uint64_t{1} << 20;

// Runs a script of the shell as root, with its output in the failed expectation where it does not succeed.
bool Shell(const std::string& script);
// Its standard output and error, without the line end; a failed expectation where it does not succeed.
std::string OutputOf(const std::string& script);

// The first word of a file, or "" where there is none: what sysfs tells.
std::string FirstWord(const std::string& path);
// "nbd0" of "/dev/nbd0".
std::string NameOf(const std::string& device);
// Of /sys/block/nbdN, in bytes.
uint64_t SizeOf(const std::string& device);
// The kernel has let the device go.
bool IsFree(const std::string& device);
// Names of all nbd disks that are connected or have a size.
std::vector<std::string> UsedDevices();
// What a file takes on its file system.
uint64_t AllocatedBytes(const std::string& path);

// `count` bytes at `offset` of a device (past the page cache) or a file. The errno where that fails, else 0.
int WriteAt(const std::string& path, uint64_t offset, absl::string_view data, int more_flags = 0);
int ReadAt(const std::string& path, uint64_t offset, size_t count, std::string* data);
// The contents of a device or a file at a place, for a comparison; a failed expectation where it fails.
std::string ContentAt(const std::string& path, uint64_t offset, size_t count);
// A block of 4 KiB that tells from every other `seed`.
std::string Pattern(uint64_t seed);

// A mounted file system; unmounted at the latest with the object.
class Mount {
 public:
  // A failed expectation where it cannot be mounted.
  Mount(const std::string& device, const std::string& file_system, const std::string& folder,
        unsigned long flags = 0, const std::string& options = "");  // NOLINT(runtime/int): mount(2) has it.
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;
  ~Mount() { Unmount(); }

  bool Unmount();
  const std::string& folder() const { return folder_; }
  std::string Path(absl::string_view name) const;

 private:
  const std::string folder_;
  bool mounted_ = false;
};

// As BerthdProcess: not thread-safe, every wait has a deadline, an expectation fails where a helper cannot do
// what it says.
class DiskServer : public control::BerthdProcess {
 public:
  // The image of a disk that CreateDisk() made.
  std::string Image(const std::string& name) const;
  std::string Path(const std::string& name) const;

  // A raw image of `size` bytes, and an export of the same name.
  void CreateDisk(const std::string& name, uint64_t size);
  grpc::Status CreateExport(const std::string& name, const v1::ExportSpec& spec);
  // The spec of an export of Image(name).
  v1::ExportSpec SpecOf(const std::string& name) const;

  // The device of an attachment that has the export's name.
  std::string AttachDisk(const std::string& name, v1::AttachmentSpec spec = {});
  std::string AttachDisk(const std::string& name, uint32_t connections);
  // Expects that the detach succeeds, and that the kernel let the device go.
  void DetachDisk(const std::string& name, const std::string& device);

  v1::Export GetExport(const std::string& name);
  v1::OperationStatistics Statistics(const std::string& export_name, v1::IoOperation operation);
};

}  // namespace berth::kernel_test

#endif  // BERTH_TESTS_KERNEL_DISK_SERVER_H_
