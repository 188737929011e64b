#include "image/io/file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/gate.h"
#include "image/io/reactor_pool.h"

namespace berth {
namespace {

using testing::HasSubstr;

std::vector<uint8_t> Pattern(size_t size, uint8_t first = 1) {
  std::vector<uint8_t> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(first + i * 7 + i / 251);
  return bytes;
}

// A directory of its own below `parent`, removed at the end.
class Directory {
 public:
  explicit Directory(const std::string& parent) : path_(parent + "/berth_file_test_XXXXXX") {
    EXPECT_NE(mkdtemp(path_.data()), nullptr) << strerror(errno);
  }
  ~Directory() {
    const std::string command = "rm -rf '" + path_ + "'";
    EXPECT_EQ(system(command.c_str()), 0);
  }
  std::string Path(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// The test's parameter is the directory that the files are made in: on a disk, and in memory.
class FileTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    const std::string parent = GetParam();
    directory_ = std::make_unique<Directory>(parent.empty() ? testing::TempDir() : parent);
  }

  Reactor& reactor() { return pool_->at(0); }

  std::string MakeFile(size_t size) {
    const std::string path = directory_->Path("image");
    UniqueFd fd(open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600));
    EXPECT_TRUE(fd) << strerror(errno);
    EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(size)), 0);
    return path;
  }

  File Open(const std::string& path, int flags = O_RDWR) {
    absl::StatusOr<File> file = File::Open(path, flags);
    EXPECT_TRUE(file.ok()) << file.status();
    return file.ok() ? *std::move(file) : File(UniqueFd(), path);
  }

  // Makes the task on the reactor and returns what it said.
  template <typename MakeTask>
  IoResult Run(MakeTask make_task) {
    return RunOn(reactor(), make_task);
  }
  IoResult Read(const File& file, uint64_t offset, std::vector<uint8_t>* out) {
    return Run([&] { return file.Read(reactor(), offset, absl::MakeSpan(*out)); });
  }
  IoResult Write(const File& file, uint64_t offset, const std::vector<uint8_t>& data, int rw_flags = 0) {
    return Run([&] { return file.Write(reactor(), offset, data, rw_flags); });
  }

  std::unique_ptr<ReactorPool> pool_;
  std::unique_ptr<Directory> directory_;
};

TEST_P(FileTest, ReadsWhatWasWritten) {
  File file = Open(MakeFile(1 << 20));
  EXPECT_EQ(*file.Size(), 1u << 20);
  EXPECT_EQ(file.in_memory(), std::string(GetParam()) == "/dev/shm");
  const std::vector<uint8_t> data = Pattern(100'001);
  for (int rw_flags : {0, RWF_DSYNC}) {
    for (uint64_t offset : {uint64_t{0}, uint64_t{511}, uint64_t{(1 << 20) - 100'001}}) {
      EXPECT_TRUE(Write(file, offset, data, rw_flags).ok());
      std::vector<uint8_t> read(data.size());
      EXPECT_TRUE(Read(file, offset, &read).ok());
      EXPECT_EQ(read, data);
    }
  }
  EXPECT_TRUE(Run([&] { return file.Sync(reactor()); }).ok());
  EXPECT_EQ(*file.Size(), 1u << 20);
}

TEST_P(FileTest, ReadsWhatIsNotInTheCache) {
  const std::string path = MakeFile(4 << 20);
  const std::vector<uint8_t> data = Pattern(4 << 20);
  File file = Open(path);
  ASSERT_TRUE(Write(file, 0, data).ok());
  ASSERT_TRUE(Run([&] { return file.Sync(reactor()); }).ok());
  ASSERT_EQ(posix_fadvise(file.fd(), 0, 0, POSIX_FADV_DONTNEED), 0);
  // Many at once, part of each in the cache by readahead for the ones before.
  constexpr size_t kLength = 10'000;
  std::vector<std::vector<uint8_t>> buffers(400, std::vector<uint8_t>(kLength));
  auto run = [&]() -> Task<void> {
    Gate gate(reactor());
    for (size_t i = 0; i < buffers.size(); ++i) {
      Spawn([](const File& from, Reactor& ring, uint64_t offset, std::vector<uint8_t>* out,
               Gate::Holder) -> Task<void> {
        EXPECT_TRUE((co_await from.Read(ring, offset, absl::MakeSpan(*out))).ok());
      }(file, reactor(), i * kLength, &buffers[i], gate.Enter()));
    }
    co_await gate.Close();
  };
  RunOn(reactor(), run);
  for (size_t i = 0; i < buffers.size(); ++i) {
    ASSERT_EQ(memcmp(buffers[i].data(), data.data() + i * kLength, kLength), 0) << i;
  }
}

// A file that was cut while it was open: an error, not a signal, a short read or zeroes.
TEST_P(FileTest, AFileThatWasCutGivesEio) {
  const std::string path = MakeFile(64 << 10);
  File file = Open(path);
  ASSERT_TRUE(Write(file, 0, Pattern(64 << 10)).ok());
  ASSERT_EQ(truncate(path.c_str(), 10'000), 0);
  EXPECT_EQ(*file.Size(), 10'000u);
  std::vector<uint8_t> read(4096);
  EXPECT_TRUE(Read(file, 5904, &read).ok());
  EXPECT_EQ(Read(file, 5905, &read), IoResult::Error(EIO));
  EXPECT_EQ(Read(file, 10'000, &read), IoResult::Error(EIO));
  EXPECT_EQ(Read(file, 1 << 30, &read), IoResult::Error(EIO));
}

TEST_P(FileTest, TheDescriptorsModeIsKept) {
  const std::string path = MakeFile(4096);
  std::vector<uint8_t> bytes(512);
  File reader = Open(path, O_RDONLY);
  EXPECT_EQ(Write(reader, 0, bytes), IoResult::Error(EBADF));
  EXPECT_TRUE(Read(reader, 0, &bytes).ok());
  File writer = Open(path, O_WRONLY);
  EXPECT_EQ(Read(writer, 0, &bytes), IoResult::Error(EBADF));
  EXPECT_TRUE(Write(writer, 0, bytes).ok());
}

// Some file systems answer EAGAIN for ever on a non-blocking descriptor.
TEST_P(FileTest, TheDescriptorBlocksAndIsClosedOnExec) {
  const std::string path = MakeFile(4096);
  File file = Open(path);
  EXPECT_EQ(fcntl(file.fd(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(fcntl(file.fd(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  absl::StatusOr<File> adopted =
      File::Adopt(UniqueFd(open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC)), path);
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_EQ(fcntl(adopted->fd(), F_GETFL) & O_NONBLOCK, 0);
}

TEST_P(FileTest, DirectIo) {
  const std::string path = MakeFile(1 << 20);
  absl::StatusOr<File> opened = File::Open(path, O_RDWR | O_DIRECT);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const File& file = *opened;
  std::unique_ptr<void, decltype(&free)> memory(aligned_alloc(4096, 8192), free);
  const absl::Span<uint8_t> aligned(static_cast<uint8_t*>(memory.get()), 8192);
  const std::vector<uint8_t> data = Pattern(8192);
  memcpy(aligned.data(), data.data(), 8192);
  EXPECT_TRUE(Run([&] { return file.Write(reactor(), 4096, aligned); }).ok());
  memset(aligned.data(), 0, 8192);
  EXPECT_TRUE(Run([&] { return file.Read(reactor(), 4096, aligned); }).ok());
  EXPECT_EQ(memcmp(aligned.data(), data.data(), 8192), 0);
  // What the kernel says of unaligned requests arrives as it is; memory has no alignment to keep.
  const IoResult unaligned = Run([&] { return file.Read(reactor(), 4097, aligned.subspan(1, 100)); });
  EXPECT_EQ(unaligned.error, file.in_memory() ? 0 : EINVAL);
}

TEST_P(FileTest, AllocateAndPunch) {
  const std::string path = MakeFile(8 << 20);
  File file = Open(path);
  auto blocks = [&] {
    struct stat info;
    EXPECT_EQ(fstat(file.fd(), &info), 0);
    return static_cast<uint64_t>(info.st_blocks) * 512;
  };
  auto allocate = [&](int mode, uint64_t offset, uint64_t length) {
    return Run([&] { return file.Allocate(reactor(), mode, offset, length); });
  };
  // Above and below what is done inline in memory.
  EXPECT_TRUE(allocate(FALLOC_FL_KEEP_SIZE, 0, 4 << 20).ok());
  EXPECT_GE(blocks(), 4u << 20);
  ASSERT_TRUE(Write(file, 0, Pattern(4 << 20)).ok());
  EXPECT_TRUE(allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 << 20).ok());
  EXPECT_TRUE(allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 << 20, 1 << 20).ok());
  EXPECT_LT(blocks(), 2u << 20);
  std::vector<uint8_t> read(3 << 20, 9);
  EXPECT_TRUE(Read(file, 0, &read).ok());
  EXPECT_EQ(std::count(read.begin(), read.end(), 0), 3 << 20);
  EXPECT_EQ(*file.Size(), 8u << 20);
  EXPECT_EQ(allocate(1 << 30, 0, 4096), IoResult::Error(EOPNOTSUPP));
  // More than a file can have, or memory has room for: refused before any of it is taken.
  const IoResult full = allocate(FALLOC_FL_KEEP_SIZE, 0, uint64_t{1} << 62);
  EXPECT_TRUE(full.error == ENOSPC || full.error == EFBIG) << full.error;
}

// The limit on a file's size stands for a full disk: a write ends in the middle, and says why.
TEST_P(FileTest, AWriteThatEndsInTheMiddleFails) {
  File file = Open(MakeFile(4096));
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  rlimit limit = before;
  limit.rlim_cur = 10'000;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const IoResult result = Write(file, 4096, Pattern(10'000));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, handler);
  EXPECT_EQ(result, IoResult::Error(EFBIG));
  std::vector<uint8_t> read(4096);
  EXPECT_TRUE(Read(file, 0, &read).ok());
}

TEST_P(FileTest, AMovedFileIsTheSame) {
  File file = Open(MakeFile(4096));
  const int fd = file.fd();
  File moved = std::move(file);
  EXPECT_EQ(moved.fd(), fd);
  EXPECT_EQ(moved.path(), directory_->Path("image"));
  EXPECT_TRUE(Write(moved, 0, Pattern(512)).ok());
}

INSTANTIATE_TEST_SUITE_P(Disk, FileTest, testing::Values(""));
INSTANTIATE_TEST_SUITE_P(Memory, FileTest, testing::Values("/dev/shm"));

class OpenTest : public testing::Test {
 protected:
  static constexpr int kModes[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR | O_DIRECT};

  // What Open() says of `path`, in every mode the same.
  void ExpectRefused(const std::string& path, absl::StatusCode code, const std::string& text) {
    for (int flags : kModes) {
      const absl::Status status = File::Open(path, flags).status();
      EXPECT_EQ(status.code(), code) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    }
  }

  Directory directory_{testing::TempDir()};
};

TEST_F(OpenTest, WhatIsNoFile) {
  constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
  const std::string fifo = directory_.Path("fifo");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  ExpectRefused(fifo, kInvalid, "fifo\" is a fifo");

  const std::string directory = directory_.Path("directory");
  ASSERT_EQ(mkdir(directory.c_str(), 0700), 0);
  ExpectRefused(directory, kInvalid, "directory\" is a directory");

  UniqueFd socket_fd(socket(AF_UNIX, SOCK_STREAM, 0));
  // Bound by a relative name, as TEST_TMPDIR may be longer than such an address.
  ASSERT_EQ(chdir(directory_.Path("").c_str()), 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  strcpy(address.sun_path, "socket");
  ASSERT_EQ(bind(socket_fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0)
      << strerror(errno);
  ExpectRefused(directory_.Path("socket"), kInvalid, "socket\" is a socket");

  ExpectRefused("/dev/null", kInvalid,
                "/dev/null\" is a character device; an image is a regular file or a block");
  // A link is what it leads to.
  ASSERT_EQ(symlink("fifo", directory_.Path("link").c_str()), 0);
  ExpectRefused(directory_.Path("link"), kInvalid, "link\" is a fifo");
  ASSERT_EQ(chdir("/"), 0);
}

TEST_F(OpenTest, WhatCannotBeOpened) {
  ExpectRefused(directory_.Path("missing"), absl::StatusCode::kNotFound, "missing\": No such file");
  ExpectRefused(std::string(10'000, 'x'), absl::StatusCode::kInvalidArgument, "File name too long");
  ExpectRefused(std::string("/dev/zero\0x", 11), absl::StatusCode::kInvalidArgument, "zero byte");
  ASSERT_EQ(symlink("loop", directory_.Path("loop").c_str()), 0);
  ExpectRefused(directory_.Path("loop"), absl::StatusCode::kFailedPrecondition, "loop\"");
  ExpectRefused("", absl::StatusCode::kNotFound, "cannot open \"\"");
}

TEST_F(OpenTest, AFileSystemWithoutDirectIo) {
  const absl::Status status = File::Open("/proc/self/status", O_RDONLY | O_DIRECT).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("has no O_DIRECT; use a cache mode that caches"));
}

TEST_F(OpenTest, ErrorsSayTheWayOut) {
  const absl::Status read_only = File::OpenError(EROFS, O_RDWR, "/a");
  EXPECT_EQ(read_only.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(read_only.message()), HasSubstr("open it read-only"));
  // EINVAL has other causes than O_DIRECT.
  EXPECT_EQ(File::OpenError(EINVAL, O_RDWR, "/a").message().find("O_DIRECT"), absl::string_view::npos);
  EXPECT_EQ(File::OpenError(EACCES, O_RDWR, "/a").code(), absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace berth
