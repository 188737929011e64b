// The locks against the real qemu tools: they refuse what we hold, and we refuse what they hold.
#include "image/raw/image_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/block/error_reason.h"
#include "image/io/unique_fd.h"
#include "image/raw/raw_device.h"
#include "image/raw/temporary_image.h"

namespace berth {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSize = 1 << 20;

struct Outcome {
  int exit_code;
  std::string output;  // Both streams.
};

Outcome Shell(const std::string& command) {
  Outcome outcome = {-1, ""};
  FILE* pipe = popen((command + " 2>&1").c_str(), "re");
  if (pipe == nullptr) return outcome;
  std::array<char, 4096> buffer;
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) outcome.output += buffer.data();
  outcome.exit_code = WEXITSTATUS(pclose(pipe));
  return outcome;
}

// qemu-io with the image open, until the end of the object's life.
class RunningQemuIo {
 public:
  RunningQemuIo(const std::string& options, const std::string& path) {
    int to_child[2], from_child[2];
    EXPECT_EQ(pipe2(to_child, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(from_child, O_CLOEXEC), 0);
    const std::string command = "exec qemu-io " + options + " -f raw " + path;
    pid_ = fork();
    if (pid_ == 0) {
      dup2(to_child[0], 0);
      dup2(from_child[1], 1);
      execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      _exit(127);
    }
    input_.Reset(to_child[1]);
    output_.Reset(from_child[0]);
    close(to_child[0]);
    close(from_child[1]);
    // It answers a command when the image is open.
    EXPECT_EQ(write(input_.get(), "length\n", 7), 7);
    char byte;
    std::string seen;
    while (seen.find("1 MiB") == std::string::npos && read(output_.get(), &byte, 1) == 1) seen += byte;
    EXPECT_THAT(seen, HasSubstr("1 MiB"));
  }
  ~RunningQemuIo() {
    input_.Reset();  // End of input ends it.
    int status;
    waitpid(pid_, &status, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  UniqueFd input_, output_;
};

absl::StatusOr<std::shared_ptr<RawDevice>> Open(const TemporaryImage& image, bool read_only,
                                                LockMode lock = LockMode::kExclusive) {
  return RawDevice::Open(image.path(), {.read_only = read_only, .lock = lock});
}

void ExpectLocked(const absl::Status& status, const TemporaryImage& image) {
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_EQ(ErrorReason(status), kReasonImageLocked);
  EXPECT_THAT(std::string(status.message()), HasSubstr(image.path()));
}

class ImageLockTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    ASSERT_EQ(Shell("qemu-io --version").exit_code, 0) << "qemu-utils is needed (.ci/packages.txt)";
  }
  TemporaryImage image_{GetParam() ? MemoryDirectory() : DiskDirectory(), kSize};
};

INSTANTIATE_TEST_SUITE_P(FileSystems, ImageLockTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "InMemory" : "OnDisk"; });

TEST_P(ImageLockTest, QemuDoesNotChangeWhatWeWrite) {
  auto device = Open(image_, false);
  ASSERT_TRUE(device.ok()) << device.status();
  const Outcome write = Shell("qemu-io -f raw -c 'write 0 4k' " + image_.path());
  EXPECT_NE(write.exit_code, 0);
  EXPECT_THAT(write.output, HasSubstr("Failed to get \"write\" lock"));
  const Outcome resize = Shell("qemu-img resize -f raw " + image_.path() + " 2M");
  EXPECT_NE(resize.exit_code, 0);
  EXPECT_THAT(resize.output, HasSubstr("lock"));
  // A qcow2 reader does not share the permission to write, so that one is refused to read as well.
  EXPECT_EQ(Shell("qemu-img info -U " + image_.path()).exit_code, 0);
  EXPECT_EQ(image_.size(), kSize);
  device->reset();
  EXPECT_EQ(Shell("qemu-io -f raw -c 'write 0 4k' " + image_.path()).exit_code, 0);
}

TEST_P(ImageLockTest, QemuDoesNotChangeWhatWeOnlyRead) {
  auto device = Open(image_, true);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_NE(Shell("qemu-io -f raw -c 'write 0 4k' " + image_.path()).exit_code, 0);
  const Outcome read = Shell("qemu-io -r -f raw -c 'read 0 4k' " + image_.path());
  EXPECT_EQ(read.exit_code, 0) << read.output;
}

TEST_P(ImageLockTest, WeRefuseWhatQemuWrites) {
  const RunningQemuIo qemu("", image_.path());
  for (const bool read_only : {false, true}) {
    const absl::Status status = Open(image_, read_only).status();
    ExpectLocked(status, image_);
    EXPECT_THAT(std::string(status.message()), HasSubstr("qemu-io, process " + std::to_string(qemu.pid())));
  }
  // Without a lock nobody is asked.
  EXPECT_TRUE(Open(image_, false, LockMode::kNone).ok());
}

TEST_P(ImageLockTest, ReadersShare) {
  const RunningQemuIo qemu("-r", image_.path());
  auto first = Open(image_, true);
  auto second = Open(image_, true);
  EXPECT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(second.ok()) << second.status();
  ExpectLocked(Open(image_, false).status(), image_);
}

TEST_P(ImageLockTest, OurOwnWritersExcludeEachOther) {
  auto writer = Open(image_, false);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ExpectLocked(Open(image_, false).status(), image_);
  ExpectLocked(Open(image_, true).status(), image_);
  ExpectLocked(Open(image_, false, LockMode::kSharedWriter).status(), image_);
  // The one that was refused left no bytes locked.
  writer->reset();
  EXPECT_TRUE(Open(image_, false).ok());
}

TEST_P(ImageLockTest, SharedWritersShareAndResizeOnlyWhereAllAgree) {
  auto first = Open(image_, false, LockMode::kSharedWriter);
  auto second = Open(image_, false, LockMode::kSharedWriter);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  ExpectLocked(Open(image_, false).status(), image_);
  const Outcome write = Shell("qemu-io -f raw -c 'write 0 4k' " + image_.path());
  EXPECT_EQ(write.exit_code, 0) << write.output;
  EXPECT_TRUE((*first)->Resize(2 * kSize).ok());
  EXPECT_TRUE((*first)->Resize(kSize).ok());
}

// Whether somebody else than `fd`'s open file locks `byte`.
bool IsLocked(int fd, off_t byte) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  EXPECT_EQ(fcntl(fd, F_OFD_GETLK, &lock), 0);
  return lock.l_type != F_UNLCK;
}

// Another program that writes as well, and does not let others resize (byte 203).
TEST_P(ImageLockTest, ASharedWriterResizesOnlyWhereOthersLetIt) {
  constexpr off_t kUsesResize = 103, kUnsharesResize = 203;
  auto device = Open(image_, false, LockMode::kSharedWriter);
  ASSERT_TRUE(device.ok()) << device.status();
  {
    const UniqueFd other(open(image_.path().c_str(), O_RDWR | O_CLOEXEC));
    struct flock lock = {};
    lock.l_type = F_RDLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = kUnsharesResize;
    lock.l_len = 1;
    ASSERT_EQ(fcntl(other.get(), F_OFD_SETLK, &lock), 0);
    for (const uint64_t size : {2 * kSize, kSize / 2}) {
      const absl::Status status = (*device)->Resize(size);
      ExpectLocked(status, image_);
      EXPECT_THAT(std::string(status.message()), HasSubstr("resize"));
    }
    EXPECT_EQ(image_.size(), kSize);
    EXPECT_EQ((*device)->size(), kSize);
    EXPECT_FALSE(IsLocked(other.get(), kUsesResize)) << "a resize that was refused keeps its permission";
  }
  EXPECT_TRUE((*device)->Resize(2 * kSize).ok());
  const UniqueFd other(open(image_.path().c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_FALSE(IsLocked(other.get(), kUsesResize)) << "a resize that is over keeps its permission";
}

TEST_P(ImageLockTest, SeesWhoWrites) {
  const UniqueFd fd(open(image_.path().c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(*IsOpenForWriting(fd.get(), image_.path()));
  {
    auto reader = Open(image_, true);
    EXPECT_FALSE(*IsOpenForWriting(fd.get(), image_.path()));
  }
  {
    auto writer = Open(image_, false);
    EXPECT_TRUE(*IsOpenForWriting(fd.get(), image_.path()));
  }
  EXPECT_FALSE(*IsOpenForWriting(fd.get(), image_.path()));
  const RunningQemuIo qemu("", image_.path());
  EXPECT_TRUE(*IsOpenForWriting(fd.get(), image_.path()));
}

}  // namespace
}  // namespace berth
