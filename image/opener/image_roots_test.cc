#include "image/opener/image_roots.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/block/error_reason.h"
#include "image/opener/confined_open.h"

namespace berth {
namespace {

using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

void WriteFile(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

std::string ReadAll(const UniqueFd& fd) {
  char buffer[64] = {};
  EXPECT_GE(pread(fd.get(), buffer, sizeof(buffer) - 1, 0), 0);
  return buffer;
}

class ImageRootsTest : public testing::Test {
 protected:
  void SetUp() override {
    base_ = testing::TempDir() + "/roots-XXXXXX";
    ASSERT_NE(mkdtemp(base_.data()), nullptr);
    root_ = base_ + "/images";
    outside_ = base_ + "/outside";
    fs::create_directories(root_ + "/sub");
    fs::create_directories(outside_);
    fs::create_directories(base_ + "/images-not");
    WriteFile(root_ + "/disk", "inside");
    WriteFile(root_ + "/sub/disk", "below");
    WriteFile(outside_ + "/secret", "secret");
    WriteFile(base_ + "/images-not/secret", "secret");
    auto roots = ImageRoots::Within({root_});
    ASSERT_TRUE(roots.ok()) << roots.status();
    roots_ = *std::move(roots);
  }
  void TearDown() override { fs::remove_all(base_); }

  std::string Content(const std::string& path) {
    auto fd = roots_.OpenFile(path, O_RDONLY);
    return fd.ok() ? ReadAll(*fd) : fd.status().ToString();
  }
  void ExpectRefused(const std::string& path) {
    const absl::Status status = roots_.OpenFile(path, O_RDONLY).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << path << ": " << status;
    EXPECT_EQ(ErrorReason(status), kReasonOutsideImageRoots);
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr(fs::canonical(root_))));
  }

  std::string base_, root_, outside_;
  ImageRoots roots_ = ImageRoots::Anywhere();
};

TEST_F(ImageRootsTest, OpensWhatIsInside) {
  EXPECT_EQ(Content(root_ + "/disk"), "inside");
  EXPECT_EQ(Content(root_ + "/sub/disk"), "below");
  EXPECT_EQ(Content(root_ + "/sub/../disk"), "inside");
  EXPECT_EQ(Content(root_ + "//sub/./disk"), "below");
}

TEST_F(ImageRootsTest, RefusesWhatIsOutside) {
  ExpectRefused(outside_ + "/secret");
  ExpectRefused(root_ + "/../outside/secret");
  ExpectRefused(base_ + "/images-not/secret");  // The root's name is only its beginning.
  ExpectRefused("/etc/passwd");
  // Whether it exists is not told.
  ExpectRefused(outside_ + "/nothing");
  ExpectRefused(root_ + "/../outside/nothing/at/all");
  ExpectRefused("/proc/self/root/etc/passwd");
}

TEST_F(ImageRootsTest, LinksWorkWhileTheyEndInside) {
  fs::create_symlink("sub/disk", root_ + "/relative");
  fs::create_symlink(root_ + "/sub/disk", root_ + "/absolute");
  fs::create_directory_symlink(root_, base_ + "/alias");
  EXPECT_EQ(Content(root_ + "/relative"), "below");
  EXPECT_EQ(Content(root_ + "/absolute"), "below");
  EXPECT_EQ(Content(base_ + "/alias/disk"), "inside");

  fs::create_symlink(outside_ + "/secret", root_ + "/out");
  fs::create_symlink("../outside/secret", root_ + "/out-relative");
  fs::create_directory_symlink(outside_, root_ + "/out-directory");
  fs::create_symlink(root_ + "/out", root_ + "/out-twice");
  ExpectRefused(root_ + "/out");
  ExpectRefused(root_ + "/out-relative");
  ExpectRefused(root_ + "/out-directory/secret");
  ExpectRefused(root_ + "/out-twice");
  fs::create_symlink(root_ + "/loop", root_ + "/loop");
  EXPECT_FALSE(roots_.OpenFile(root_ + "/loop", O_RDONLY).ok());
}

TEST_F(ImageRootsTest, BadPathsGetTheirError) {
  const auto code = [&](const std::string& path) { return roots_.OpenFile(path, O_RDWR).status().code(); };
  EXPECT_EQ(code(""), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("disk"), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(root_ + std::string("/disk\0x", 7)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code("/" + std::string(10000, 'x')), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(root_ + "/" + std::string(300, 'x')), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(root_ + "/nothing"), absl::StatusCode::kNotFound);
  EXPECT_EQ(code(root_), absl::StatusCode::kInvalidArgument);  // A directory.
  ASSERT_EQ(mkfifo((root_ + "/fifo").c_str(), 0600), 0);
  EXPECT_EQ(code(root_ + "/fifo"), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(ImageRoots::Within({root_ + "/nothing"}).ok());
  EXPECT_FALSE(ImageRoots::Within({root_ + "/disk"}).ok());
}

TEST_F(ImageRootsTest, NoRootsAllowNothing) {
  auto none = ImageRoots::Within({});
  ASSERT_TRUE(none.ok());
  const absl::Status status = none->OpenFile(root_ + "/disk", O_RDONLY).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no image root is configured"));
  EXPECT_TRUE(ImageRoots::Anywhere().OpenFile(outside_ + "/secret", O_RDONLY).ok());
  EXPECT_TRUE(ImageRoots::Within({"/"})->OpenFile(root_ + "/disk", O_RDONLY).ok());
}

// A directory on the way changes places with a link to the outside, all the time: what is opened is inside.
TEST_F(ImageRootsTest, ALinkPutThereMeanwhileLeadsNowhere) {
  WriteFile(outside_ + "/disk", "secret");
  fs::create_directory_symlink(outside_, root_ + "/trap");
  std::atomic<bool> stop = false;
  std::thread swapper([&] {
    while (!stop) {
      ASSERT_EQ(
          renameat2(AT_FDCWD, (root_ + "/trap").c_str(), AT_FDCWD, (root_ + "/sub").c_str(), RENAME_EXCHANGE),
          0);
    }
  });
  for (int i = 0; i < 2000; ++i) {
    auto fd = roots_.OpenFile(root_ + "/sub/disk", O_RDONLY);
    if (fd.ok()) {
      EXPECT_EQ(ReadAll(*fd), "below");
    }
  }
  stop = true;
  swapper.join();
}

TEST_F(ImageRootsTest, BothWaysOfOpeningKeepInside) {
  fs::create_directory_symlink(outside_, root_ + "/out");
  fs::create_symlink("disk", root_ + "/link");
  const UniqueFd directory(open(root_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  for (const auto& open_confined : {OpenConfined, OpenConfinedByWalking}) {
    EXPECT_EQ(ReadAll(open_confined(directory.get(), "sub/disk", O_RDONLY)), "below");
    EXPECT_FALSE(open_confined(directory.get(), "../outside/secret", O_RDONLY));
    EXPECT_EQ(errno, EXDEV);
    EXPECT_FALSE(open_confined(directory.get(), "out/secret", O_RDONLY));
    EXPECT_FALSE(open_confined(directory.get(), "link", O_RDONLY));
    EXPECT_EQ(errno, ELOOP);
  }
}

TEST_F(ImageRootsTest, FindsPlacesForNewFiles) {
  auto place = roots_.FindPlace(root_ + "/sub/new");
  ASSERT_TRUE(place.ok()) << place.status();
  EXPECT_EQ(place->name, "new");
  EXPECT_EQ(faccessat(place->directory.get(), "disk", F_OK, 0), 0);
  EXPECT_EQ(roots_.FindPlace(outside_ + "/new").status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(roots_.FindPlace(root_ + "/../new").status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(roots_.FindPlace(root_ + "/nothing/new").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(roots_.FindPlace(root_ + "/..").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(roots_.FindPlace(root_ + "/").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(roots_.FindPlace(root_ + "/" + std::string(300, 'x')).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace berth
