#include "image/opener/image_files.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/block/error_reason.h"
#include "image/io/file.h"
#include "image/io/progress.h"
#include "image/opener/opener.h"

namespace berth {
namespace {

using testing::HasSubstr;
constexpr uint64_t kMiB = uint64_t{1} << 20;

class ImageFilesTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    directory_ = (GetParam()[0] == '/' ? GetParam() : testing::TempDir()) + "/berth-files-XXXXXX";
    ASSERT_NE(mkdtemp(directory_.data()), nullptr);
    roots_ = *ImageRoots::Within({directory_});
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string Path(const std::string& name) const { return directory_ + "/" + name; }
  size_t Entries() const {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory_)) ++count;
    return count;
  }

  std::string directory_;
  ImageRoots roots_ = ImageRoots::Anywhere();
};

INSTANTIATE_TEST_SUITE_P(FileSystems, ImageFilesTest, testing::Values("disk", "/dev/shm"),
                         [](const auto& info) { return info.index == 0 ? "OnDisk" : "InMemory"; });

TEST_P(ImageFilesTest, CreatesSparseAndPreallocated) {
  auto sparse = CreateRawImage(roots_, Path("sparse"), 3 * kMiB + 5, false);
  ASSERT_TRUE(sparse.ok()) << sparse.status();
  EXPECT_EQ(sparse->size, 3 * kMiB + 5);
  EXPECT_LT(sparse->allocated, kMiB);
  EXPECT_FALSE(sparse->in_use);
  auto full = CreateRawImage(roots_, Path("full"), kMiB, true);
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_GE(full->allocated, kMiB);
  struct stat info;
  ASSERT_EQ(stat(Path("full").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_P(ImageFilesTest, RepeatingACallIsTheSameAnswer) {
  ASSERT_TRUE(CreateRawImage(roots_, Path("disk"), kMiB, false).ok());
  EXPECT_TRUE(CreateRawImage(roots_, Path("disk"), kMiB, false).ok());
  EXPECT_GE(CreateRawImage(roots_, Path("disk"), kMiB, true)->allocated, kMiB);
  const absl::Status other = CreateRawImage(roots_, Path("disk"), kMiB + 1, false).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kAlreadyExists) << other;
  EXPECT_THAT(std::string(other.message()), HasSubstr("1048576"));
  std::filesystem::create_directory(Path("directory"));
  EXPECT_EQ(CreateRawImage(roots_, Path("directory"), kMiB, false).status().code(),
            absl::StatusCode::kAlreadyExists);
  // A link in the way is not followed, wherever it leads.
  std::filesystem::create_symlink("/dev/shm/berth-never-made", Path("link"));
  EXPECT_EQ(CreateRawImage(roots_, Path("link"), kMiB, false).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_NE(access("/dev/shm/berth-never-made", F_OK), 0);
}

TEST_P(ImageFilesTest, ImpossibleSizesLeaveNothingBehind) {
  const auto code = [&](uint64_t size) {
    return CreateRawImage(roots_, Path("disk"), size, false).status().code();
  };
  EXPECT_EQ(code(0), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(uint64_t{1} << 63), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(~uint64_t{0}), absl::StatusCode::kInvalidArgument);
  // More than a file system can give: every one has less than 2^63 bytes. None is taken to find that out.
  Progress progress([] { return false; });
  const absl::Status full =
      CreateRawImage(roots_, Path("disk"), (uint64_t{1} << 62) + 1, true, &progress).status();
  EXPECT_EQ(progress.done(), 0u);
  EXPECT_TRUE(full.code() == absl::StatusCode::kInvalidArgument ||
              full.code() == absl::StatusCode::kResourceExhausted)
      << full;
  EXPECT_EQ(Entries(), 0u);
  EXPECT_EQ(CreateRawImage(roots_, "/etc/berth-disk", kMiB, false).status().code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(CreateRawImage(roots_, Path("no/disk"), kMiB, false).status().code(),
            absl::StatusCode::kNotFound);
}

// The work asks before each piece; `seen` is what was done then.
struct Asked {
  std::vector<uint64_t> seen;
  size_t cancel_at = SIZE_MAX;
  const Progress* progress = nullptr;
};

TEST_P(ImageFilesTest, PreallocationTellsHowFarItIs) {
  Asked asked;
  Progress progress([&asked] {
    asked.seen.push_back(asked.progress->done());
    return false;
  });
  asked.progress = &progress;
  auto made = CreateRawImage(roots_, Path("disk"), 130 * kMiB + 5, true, &progress);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_GE(made->allocated, 130 * kMiB + 5);
  EXPECT_EQ(asked.seen, (std::vector<uint64_t>{0, 64 * kMiB, 128 * kMiB}));
  EXPECT_EQ(progress.done(), 130 * kMiB + 5);
  EXPECT_EQ(progress.total(), 130 * kMiB + 5);
}

TEST_P(ImageFilesTest, CancelledPreallocationLeavesNothingOfANewFile) {
  int asked = 0;
  Progress progress([&asked] { return ++asked == 2; });
  const absl::Status status = CreateRawImage(roots_, Path("disk"), 130 * kMiB, true, &progress).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("67108864 of 136314880"));
  EXPECT_EQ(progress.done(), 64 * kMiB);
  EXPECT_EQ(Entries(), 0u);
}

TEST_P(ImageFilesTest, CancelledPreallocationLeavesAnOldFilesContent) {
  ASSERT_TRUE(CreateRawImage(roots_, Path("disk"), 130 * kMiB, false).ok());
  {
    File file = *File::Open(Path("disk"), O_RDWR);
    ASSERT_EQ(pwrite(file.fd(), "here", 4, 65 * kMiB), 4);
  }
  int asked = 0;
  Progress progress([&asked] { return ++asked == 2; });
  EXPECT_TRUE(absl::IsCancelled(CreateRawImage(roots_, Path("disk"), 130 * kMiB, true, &progress).status()));
  auto left = InspectRawImage(roots_, Path("disk"));
  EXPECT_EQ(left->size, 130 * kMiB);
  EXPECT_LT(left->allocated, 130 * kMiB);
  char content[5] = {};
  File file = *File::Open(Path("disk"), O_RDONLY);
  EXPECT_EQ(pread(file.fd(), content, 4, 65 * kMiB), 4);
  EXPECT_STREQ(content, "here");
  // Again, and to the end.
  EXPECT_GE(CreateRawImage(roots_, Path("disk"), 130 * kMiB, true)->allocated, 130 * kMiB);
}

TEST_P(ImageFilesTest, InspectsAnImageInUse) {
  ASSERT_TRUE(CreateRawImage(roots_, Path("disk"), kMiB, false).ok());
  ImageSpec spec;
  spec.path = Path("disk");
  auto device = OpenImage(spec, roots_);
  ASSERT_TRUE(device.ok()) << device.status();
  auto info = InspectRawImage(roots_, Path("disk"));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_TRUE(info->in_use);
  const absl::Status resized = ResizeRawImage(roots_, Path("disk"), 2 * kMiB, false).status();
  EXPECT_EQ(resized.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReason(resized), kReasonImageLocked);
  device->reset();
  EXPECT_FALSE(InspectRawImage(roots_, Path("disk"))->in_use);
}

TEST_P(ImageFilesTest, Resizes) {
  ASSERT_TRUE(CreateRawImage(roots_, Path("disk"), kMiB, false).ok());
  EXPECT_EQ(ResizeRawImage(roots_, Path("disk"), 3 * kMiB, false)->size, 3 * kMiB);
  const absl::Status shrink = ResizeRawImage(roots_, Path("disk"), kMiB, false).status();
  EXPECT_EQ(shrink.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ErrorReason(shrink), kReasonWouldShrink);
  EXPECT_EQ(ResizeRawImage(roots_, Path("disk"), kMiB, true)->size, kMiB);
  EXPECT_EQ(ResizeRawImage(roots_, Path("disk"), 0, true).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ResizeRawImage(roots_, Path("none"), kMiB, true).status().code(), absl::StatusCode::kNotFound);
}

// On a tmpfs of 1 MiB in a mount namespace of a child's own.
TEST(ImageFilesFullDiskTest, AFullDiskIsSaid) {
  const std::string directory = testing::TempDir() + "/full";
  ASSERT_TRUE(mkdir(directory.c_str(), 0755) == 0 || errno == EEXIST);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) _exit(2);
    mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
    if (mount("none", directory.c_str(), "tmpfs", 0, "size=1m") != 0) _exit(2);
    auto roots = ImageRoots::Within({directory});
    if (!roots.ok()) _exit(3);
    const absl::Status status = CreateRawImage(*roots, directory + "/disk", 8 * kMiB, true).status();
    if (status.code() != absl::StatusCode::kResourceExhausted) _exit(4);
    if (status.message().find("bytes left") == absl::string_view::npos) _exit(5);
    if (access((directory + "/disk").c_str(), F_OK) == 0) _exit(6);
    // A sparse one fits, as it takes nothing.
    if (!CreateRawImage(*roots, directory + "/disk", 8 * kMiB, false).ok()) _exit(7);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  ASSERT_NE(WEXITSTATUS(status), 2) << "a tmpfs cannot be mounted: run this as root, or with user namespaces";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace berth
