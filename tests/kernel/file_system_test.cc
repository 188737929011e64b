// File systems on berthd's devices, with what their own tools say of them.

#include <gtest/gtest.h>

#include <fstream>
#include <ostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/kernel/disk_server.h"

namespace berth::kernel_test {
namespace {

constexpr uint64_t kSize = 64 * kMebibyte;

struct Layout {
  const char* file_system;
  uint32_t connections;
};

std::ostream& operator<<(std::ostream& out, const Layout& layout) {
  return out << layout.file_system << " over " << layout.connections;
}

void MakeFileSystem(const std::string& file_system, const std::string& device) {
  // xfs wants 300 MiB for what it supports.
  Shell(file_system == "xfs" ? absl::StrCat("mkfs.xfs -q --unsupported ", device)
                             : absl::StrCat("mkfs.ext4 -q ", device));
}

// On a device, or on the image of one.
void CheckFileSystem(const std::string& file_system, const std::string& path) {
  Shell(file_system == "xfs" ? absl::StrCat("xfs_repair -n ", path) : absl::StrCat("e2fsck -f -n ", path));
}

// Four writers of a MiB each, past the page cache; `more` says whether to write or only to verify.
void RunFio(const Mount& mount, const std::string& more) {
  Shell(absl::StrCat(
      "cd ", mount.folder(),
      " && fio --name=job --size=1M --numjobs=4 --thread --ioengine=libaio --iodepth=16 --direct=1 "
      "--bsrange=4k-64k --rw=randwrite --fsync=64 --verify=crc32c --verify_fatal=1 "
      "--verify_state_save=0 --group_reporting ",
      more));
}

class FileSystemTest : public testing::TestWithParam<Layout> {
 protected:
  void SetUp() override { ASSERT_TRUE(server_.Start()); }
  std::string file_system() const { return GetParam().file_system; }

  DiskServer server_;
};

TEST_P(FileSystemTest, KeepsWhatFioWrote) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk", GetParam().connections);
  EXPECT_EQ(server_.GetExport("disk").connections(), GetParam().connections);
  MakeFileSystem(file_system(), device);
  {
    Mount mount(device, file_system(), server_.Path("mnt"));
    RunFio(mount, "--do_verify=1");
  }
  CheckFileSystem(file_system(), device);
  {
    Mount again(device, file_system(), server_.Path("mnt"));
    RunFio(again, "--verify_only");
  }
  server_.DetachDisk("disk", device);
  CheckFileSystem(file_system(), server_.Image("disk"));
  // fio's requests, and the file system's own, went through.
  EXPECT_EQ(server_.Statistics("disk", v1::IO_OPERATION_WRITE).errors(), 0u);
  EXPECT_EQ(server_.Statistics("disk", v1::IO_OPERATION_READ).errors(), 0u);
  EXPECT_GE(server_.Statistics("disk", v1::IO_OPERATION_WRITE).bytes(), 4 * kMebibyte);
}

INSTANTIATE_TEST_SUITE_P(Layouts, FileSystemTest,
                         testing::Values(Layout{"ext4", 1}, Layout{"ext4", 2}, Layout{"ext4", 4},
                                         Layout{"xfs", 1}, Layout{"xfs", 2}, Layout{"xfs", 4}),
                         [](const testing::TestParamInfo<Layout>& info) {
                           return absl::StrCat(info.param.file_system, "Over", info.param.connections);
                         });

class GrowingFileSystemTest : public FileSystemTest {};

TEST_P(GrowingFileSystemTest, GrowsWhileItIsMounted) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk", GetParam().connections);
  MakeFileSystem(file_system(), device);
  {
    Mount mount(device, file_system(), server_.Path("mnt"));
    std::ofstream(mount.Path("before")) << "before";
    const grpc::Status resized = server_.Resize("disk", 2 * kSize);
    ASSERT_TRUE(resized.ok()) << resized.error_message();
    // At once, and not only for those who open it anew.
    EXPECT_EQ(SizeOf(device), 2 * kSize);
    EXPECT_EQ(OutputOf(absl::StrCat("blockdev --getsize64 ", device)), absl::StrCat(2 * kSize));
    const std::string blocks = absl::StrCat("stat -f -c %b ", mount.folder());
    const std::string before = OutputOf(blocks);
    Shell(file_system() == "xfs" ? absl::StrCat("xfs_growfs ", mount.folder())
                                 : absl::StrCat("resize2fs ", device));
    EXPECT_GT(std::stoll(OutputOf(blocks)), std::stoll(before) * 3 / 2);
    // More than there was room for.
    Shell(absl::StrCat("dd if=/dev/zero bs=1M count=70 conv=fsync of=", mount.Path("after")));
    EXPECT_EQ(FirstWord(mount.Path("before")), "before");
  }
  CheckFileSystem(file_system(), device);
  server_.DetachDisk("disk", device);
  CheckFileSystem(file_system(), server_.Image("disk"));
}

TEST_P(GrowingFileSystemTest, TrimGivesTheSpaceBack) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk", GetParam().connections);
  MakeFileSystem(file_system(), device);
  uint64_t empty = 0;
  {
    Mount mount(device, file_system(), server_.Path("mnt"));
    empty = AllocatedBytes(server_.Image("disk"));
    Shell(absl::StrCat("yes | dd bs=1M count=16 iflag=fullblock conv=fsync of=", mount.Path("file")));
    EXPECT_GE(AllocatedBytes(server_.Image("disk")), empty + 16 * kMebibyte);
    Shell(absl::StrCat("rm ", mount.Path("file")));
  }
  {
    // xfs frees a file's blocks in the background, and trims none that its log holds yet: the unmount ended
    // that.
    Mount again(device, file_system(), server_.Path("mnt"));
    Shell(absl::StrCat("fstrim ", again.folder()));
    EXPECT_LE(AllocatedBytes(server_.Image("disk")), empty + kMebibyte);
  }
  EXPECT_GT(server_.Statistics("disk", v1::IO_OPERATION_DISCARD).bytes(), 15 * kMebibyte);
  CheckFileSystem(file_system(), device);
  Shell(absl::StrCat("blkdiscard --force ", device));
  EXPECT_EQ(AllocatedBytes(server_.Image("disk")), 0u);
  server_.DetachDisk("disk", device);
}

INSTANTIATE_TEST_SUITE_P(FileSystems, GrowingFileSystemTest,
                         testing::Values(Layout{"ext4", 2}, Layout{"xfs", 2}),
                         [](const testing::TestParamInfo<Layout>& info) {
                           return std::string(info.param.file_system);
                         });

}  // namespace
}  // namespace berth::kernel_test
