// TemporaryImage: a file for a test, gone with the object, and in memory with the process, however that ends.
#ifndef BERTH_IMAGE_RAW_TEMPORARY_IMAGE_H_
#define BERTH_IMAGE_RAW_TEMPORARY_IMAGE_H_

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace berth {

// Where images are tried: on a disk's file system, and on tmpfs.
inline std::string DiskDirectory() { return testing::TempDir(); }
inline std::string MemoryDirectory() { return "/dev/shm"; }

class TemporaryImage {
 public:
  TemporaryImage(const std::string& directory, uint64_t size) {
    if (directory == MemoryDirectory()) {
      // Nobody empties that directory after a crash, so the file has no name in it.
      fd_ = open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
      path_ = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(fd_);
    } else {
      path_ = directory + "/berth-test-XXXXXX";
      fd_ = mkstemp(path_.data());
    }
    EXPECT_GE(fd_, 0) << path_;
    EXPECT_EQ(ftruncate(fd_, static_cast<off_t>(size)), 0);
  }
  TemporaryImage(const TemporaryImage&) = delete;
  TemporaryImage& operator=(const TemporaryImage&) = delete;
  ~TemporaryImage() {
    if (path_.rfind("/proc/", 0) != 0) unlink(path_.c_str());
    close(fd_);
  }

  const std::string& path() const { return path_; }

  // Bytes that it takes on the disk.
  uint64_t allocated() const {
    struct stat info = {};
    EXPECT_EQ(stat(path_.c_str(), &info), 0);
    return static_cast<uint64_t>(info.st_blocks) * 512;
  }
  uint64_t size() const {
    struct stat info = {};
    EXPECT_EQ(stat(path_.c_str(), &info), 0);
    return static_cast<uint64_t>(info.st_size);
  }
  // Through a descriptor of its own.
  std::vector<uint8_t> Contents() const {
    std::vector<uint8_t> bytes(size());
    const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    EXPECT_EQ(pread(fd, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    close(fd);
    return bytes;
  }

 private:
  int fd_ = -1;
  std::string path_;
};

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_TEMPORARY_IMAGE_H_
