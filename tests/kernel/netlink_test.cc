// netlink/ against the kernel it was written for.

#include <fcntl.h>
#include <linux/nbd.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "netlink/libnl_nbd_kernel.h"
#include "tests/kernel/nbd_responder.h"

namespace berth::netlink {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kSize = 16 << 20;
constexpr absl::Duration kLong = absl::Minutes(1);
constexpr char kIdentifier[] = "berth:test/one";

std::string Path(uint32_t index) { return absl::StrCat("/dev/nbd", index); }

ConnectRequest RequestFor(std::vector<int> sockets) {
  ConnectRequest request;
  request.size_bytes = kSize;
  request.server_flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN;
  request.timeout = absl::Seconds(60);
  request.dead_connection_timeout = absl::Seconds(60);
  request.backend_identifier = kIdentifier;
  request.sockets = std::move(sockets);
  return request;
}

// Runs `body` in a child process, which has one thread, and says whether it returned true there.
bool InChild(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool Shell(const std::string& command) {
  return system(absl::StrCat("PATH=/usr/sbin:/usr/bin:/sbin:/bin; ", command).c_str()) == 0;
}

// Reads through a fresh descriptor, past the page cache.
bool ReadSector(uint32_t index, uint64_t offset, std::vector<uint8_t>& sector) {
  const int fd = open(Path(index).c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  void* block = aligned_alloc(4096, 4096);
  const bool ok = pread(fd, block, 512, static_cast<off_t>(offset)) == 512;
  sector.assign(static_cast<uint8_t*>(block), static_cast<uint8_t*>(block) + 512);
  free(block);
  close(fd);
  return ok;
}

constexpr int kRounds = 50;

class Stopwatch {
 public:
  void Start() { started_ = std::chrono::steady_clock::now(); }
  void Stop() { total_ += std::chrono::steady_clock::now() - started_; }
  // In milliseconds.
  double Mean(int rounds) const { return std::chrono::duration<double, std::milli>(total_).count() / rounds; }

 private:
  std::chrono::steady_clock::time_point started_;
  std::chrono::steady_clock::duration total_{};
};

class DeadLinks {
 public:
  void Add(uint32_t index) {
    std::lock_guard<std::mutex> lock(mutex_);
    seen_.push_back(index);
    changed_.notify_all();
  }
  uint32_t Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !seen_.empty(); });
    const uint32_t index = seen_.front();
    seen_.pop_front();
    return index;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<uint32_t> seen_;
};

class NetlinkTest : public testing::Test {
 protected:
  ~NetlinkTest() override {
    responder_.ReleaseReads();
    const absl::StatusOr<std::vector<uint32_t>> devices = kernel_->ListDevices();
    for (const uint32_t index : *devices) {
      if (!kernel_->Inspect(index)->pid) continue;
      EXPECT_TRUE(kernel_->Disconnect(index).ok());
      EXPECT_TRUE(kernel_->WaitUntilFree(index, kLong).ok());
    }
  }

  // Connects with `count` sockets and waits until the device can be used.
  uint32_t Attach(size_t count, std::optional<uint32_t> index = std::nullopt) {
    ConnectRequest request = RequestFor(responder_.AddSockets(count));
    request.index = index;
    const absl::StatusOr<uint32_t> connected = kernel_->Connect(request);
    EXPECT_TRUE(connected.ok()) << connected.status();
    if (!connected.ok()) return 0;
    responder_.CloseKernelEnds();
    const absl::Status usable = kernel_->WaitUntilUsable(*connected, kSize, kLong);
    EXPECT_TRUE(usable.ok()) << usable;
    return *connected;
  }

  NbdResponder responder_{kSize};
  std::unique_ptr<LibnlNbdKernel> kernel_ = LibnlNbdKernel::Create();
};

class NetlinkSocketsTest : public NetlinkTest, public testing::WithParamInterface<int> {};

TEST_P(NetlinkSocketsTest, AttachesServesAndLetsGo) {
  const auto sockets = static_cast<size_t>(GetParam());
  responder_.Write(kSize - 512, std::vector<uint8_t>(512, 0x5a));
  const uint32_t index = Attach(sockets);
  std::vector<uint8_t> sector;
  ASSERT_TRUE(ReadSector(index, kSize - 512, sector));
  EXPECT_EQ(sector, std::vector<uint8_t>(512, 0x5a));

  const absl::StatusOr<DeviceState> state = kernel_->Inspect(index);
  ASSERT_TRUE(state.ok());
  EXPECT_EQ(state->size_bytes, kSize);
  EXPECT_EQ(state->backend_identifier, kIdentifier);
  EXPECT_FALSE(state->read_only);
  EXPECT_FALSE(state->IsFree());
  EXPECT_THAT(state->mount_points, IsEmpty());
  // The pid is the number of the thread that asked; the process behind it is this one.
  ASSERT_TRUE(state->pid.has_value());
  EXPECT_TRUE(Shell(absl::StrCat("grep -q '^Tgid:\t", getpid(), "$' /proc/", *state->pid, "/status")));

  ASSERT_TRUE(kernel_->Disconnect(index).ok());
  responder_.WaitForDisconnects(sockets);
  for (size_t i = 0; i < sockets; ++i) responder_.WaitForEndOfFile(i);
  EXPECT_TRUE(kernel_->WaitUntilFree(index, kLong).ok());
  EXPECT_TRUE(kernel_->Inspect(index)->IsFree());
  EXPECT_TRUE(kernel_->Disconnect(index).ok()) << "nothing to do is no error";
}

INSTANTIATE_TEST_SUITE_P(Sockets, NetlinkSocketsTest, testing::Values(1, 2, 4));

TEST_F(NetlinkTest, ChosenDevices) {
  EXPECT_EQ(Attach(1, 7), 7u);
  EXPECT_EQ(Attach(1, 40), 40u) << "past nbds_max";
  const absl::StatusOr<std::vector<uint32_t>> devices = kernel_->ListDevices();
  ASSERT_TRUE(devices.ok());
  EXPECT_EQ(devices->size(), 17u);
  EXPECT_EQ(devices->back(), 40u);
}

TEST_F(NetlinkTest, TakenDeviceIsNamedWithItsOwner) {
  Attach(1, 3);
  ConnectRequest request = RequestFor(responder_.AddSockets(1));
  request.index = 3;
  const absl::Status taken = kernel_->Connect(request).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(taken)) << taken;
  EXPECT_THAT(std::string(taken.message()), HasSubstr("/dev/nbd3"));
  EXPECT_THAT(std::string(taken.message()), HasSubstr(kIdentifier));
  EXPECT_EQ(kernel_->Inspect(3)->backend_identifier, kIdentifier) << "the owner lost it";
}

TEST_F(NetlinkTest, ReadOnly) {
  ConnectRequest request = RequestFor(responder_.AddSockets(1));
  request.server_flags |= NBD_FLAG_READ_ONLY;
  const absl::StatusOr<uint32_t> index = kernel_->Connect(request);
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_TRUE(kernel_->Inspect(*index)->read_only);
}

TEST_F(NetlinkTest, DeviceThatDoesNotExist) {
  EXPECT_TRUE(absl::IsNotFound(kernel_->Disconnect(1000)));
  ReconfigureRequest request;
  request.index = 1000;
  EXPECT_TRUE(absl::IsNotFound(kernel_->Reconfigure(request)));
  EXPECT_FALSE(kernel_->Inspect(1000)->exists);
  request.index = 5;
  EXPECT_TRUE(absl::IsFailedPrecondition(kernel_->Reconfigure(request)));
  EXPECT_TRUE(absl::IsFailedPrecondition(kernel_->WaitUntilUsable(5, kSize, absl::ZeroDuration())));
}

TEST_F(NetlinkTest, HeldDeviceIsFreeOnlyWhenClosed) {
  const uint32_t index = Attach(1);
  const int holder = open(Path(index).c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(holder, 0);
  const std::string self = absl::StrCat("(pid ", getpid(), ")");
  absl::StatusOr<DeviceUse> use = kernel_->FindUse(index);
  ASSERT_TRUE(use.ok()) << use.status();
  EXPECT_FALSE(use->claimed);
  EXPECT_THAT(use->openers, ElementsAre(HasSubstr(self)));

  ASSERT_TRUE(kernel_->Disconnect(index).ok());
  const absl::Status held = kernel_->WaitUntilFree(index, absl::Milliseconds(20));
  EXPECT_TRUE(absl::IsDeadlineExceeded(held)) << held;
  EXPECT_THAT(std::string(held.message()), HasSubstr(self));
  ConnectRequest request = RequestFor(responder_.AddSockets(1));
  request.index = index;
  EXPECT_TRUE(absl::IsFailedPrecondition(kernel_->Connect(request).status()));
  close(holder);
  EXPECT_TRUE(kernel_->WaitUntilFree(index, kLong).ok());
  EXPECT_THAT(kernel_->FindUse(index)->openers, IsEmpty());
}

TEST_F(NetlinkTest, ResizeIsSeen) {
  const uint32_t index = Attach(2);
  responder_.Resize(2 * kSize);
  ReconfigureRequest request;
  request.index = index;
  request.size_bytes = 2 * kSize;
  request.backend_identifier = "berth:somebody-else";
  const absl::Status foreign = kernel_->Reconfigure(request);
  EXPECT_TRUE(absl::IsFailedPrecondition(foreign)) << foreign;
  EXPECT_EQ(kernel_->Inspect(index)->size_bytes, kSize);
  request.backend_identifier = kIdentifier;
  const absl::Status resized = kernel_->Reconfigure(request);
  EXPECT_TRUE(resized.ok()) << resized;
  EXPECT_EQ(kernel_->Inspect(index)->size_bytes, 2 * kSize);
  EXPECT_TRUE(kernel_->WaitUntilUsable(index, 2 * kSize, kLong).ok());
}

TEST_F(NetlinkTest, DeadSocketIsReportedAndReplaced) {
  DeadLinks dead;
  ASSERT_TRUE(kernel_->WatchDeadLinks([&](uint32_t index) { dead.Add(index); }).ok());
  const uint32_t index = Attach(2);
  responder_.Kill(1);
  EXPECT_EQ(dead.Wait(), index);
  ReconfigureRequest request;
  request.index = index;
  request.backend_identifier = kIdentifier;
  request.sockets = responder_.AddSockets(2);
  const absl::Status repaired = kernel_->Reconfigure(request);
  EXPECT_TRUE(repaired.ok()) << repaired;
  responder_.CloseKernelEnds();
  responder_.WaitForEndOfFile(3);  // One was dead, so one was too many.
  responder_.Kill(0);
  EXPECT_EQ(dead.Wait(), index);
  std::vector<uint8_t> sector;
  EXPECT_TRUE(ReadSector(index, 0, sector)) << "the fresh socket serves";
  kernel_.reset();  // The watch ends before what it calls.
  kernel_ = LibnlNbdKernel::Create();
}

TEST_F(NetlinkTest, WaitsForFreshSocketsWhenAllAreDead) {
  DeadLinks dead;
  ASSERT_TRUE(kernel_->WatchDeadLinks([&](uint32_t index) { dead.Add(index); }).ok());
  const uint32_t index = Attach(2);
  responder_.Kill(0);
  responder_.Kill(1);
  dead.Wait();
  dead.Wait();
  std::vector<uint8_t> sector;
  bool read = false;
  std::thread reader([&] { read = ReadSector(index, 4096, sector); });
  ReconfigureRequest request;
  request.index = index;
  request.backend_identifier = kIdentifier;
  request.sockets = responder_.AddSockets(2);
  EXPECT_TRUE(kernel_->Reconfigure(request).ok());
  reader.join();
  EXPECT_TRUE(read);
  kernel_.reset();
  kernel_ = LibnlNbdKernel::Create();
}

TEST_F(NetlinkTest, PartitionsAreThereWhenUsable) {
  // One primary partition of 8 MiB from 1 MiB on, and one of 4 MiB behind it.
  std::vector<uint8_t> table(512);
  const uint8_t first[16] = {0, 0, 0, 0, 0x83, 0, 0, 0, 0, 0x08, 0, 0, 0, 0x40, 0, 0};
  const uint8_t second[16] = {0, 0, 0, 0, 0x83, 0, 0, 0, 0, 0x48, 0, 0, 0, 0x20, 0, 0};
  std::copy(first, first + 16, table.begin() + 446);
  std::copy(second, second + 16, table.begin() + 462);
  table[510] = 0x55;
  table[511] = 0xaa;
  responder_.Write(0, table);
  for (int round = 0; round < 3; ++round) {
    const uint32_t index = Attach(2);
    const std::string name = absl::StrCat("nbd", index);
    EXPECT_THAT(kernel_->Inspect(index)->partitions, ElementsAre(name + "p1", name + "p2"));
    EXPECT_EQ(access(absl::StrCat("/dev/", name, "p2").c_str(), R_OK), 0);
    ASSERT_TRUE(kernel_->Disconnect(index).ok());
    ASSERT_TRUE(kernel_->WaitUntilFree(index, kLong).ok());
    EXPECT_THAT(kernel_->Inspect(index)->partitions, IsEmpty());
  }
  // The next one on the same device has no table.
  responder_.Write(0, std::vector<uint8_t>(512));
  EXPECT_THAT(kernel_->Inspect(Attach(1))->partitions, IsEmpty());
}

TEST_F(NetlinkTest, MountsAreSeen) {
  const uint32_t index = Attach(2);
  const std::string folder = std::string(getenv("TEST_TMPDIR")) + "/mount point";
  mkdir(folder.c_str(), 0700);
  ASSERT_TRUE(Shell(absl::StrCat("mkfs.ext4 -q ", Path(index))));
  EXPECT_FALSE(kernel_->FindUse(index)->claimed);
  ASSERT_EQ(mount(Path(index).c_str(), folder.c_str(), "ext4", 0, ""), 0) << errno;
  EXPECT_THAT(kernel_->Inspect(index)->mount_points, ElementsAre(folder));
  EXPECT_TRUE(kernel_->FindUse(index)->claimed);
  ASSERT_EQ(umount(folder.c_str()), 0);
  EXPECT_THAT(kernel_->Inspect(index)->mount_points, IsEmpty());
  EXPECT_FALSE(kernel_->FindUse(index)->claimed);

  // In another mount namespace only the claim can be seen.
  int ready[2], done[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(done), 0);
  std::thread elsewhere([&] {
    EXPECT_TRUE(InChild([&] {
      char byte = 0;
      const bool mounted = unshare(CLONE_NEWNS) == 0 && mount("", "/", "", MS_REC | MS_PRIVATE, "") == 0 &&
                           mount(Path(index).c_str(), folder.c_str(), "ext4", 0, "") == 0;
      const bool told = write(ready[1], &byte, 1) == 1 && read(done[0], &byte, 1) == 1;
      return mounted && told;
    }));
  });
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_THAT(kernel_->Inspect(index)->mount_points, IsEmpty());
  EXPECT_TRUE(kernel_->FindUse(index)->claimed);
  ASSERT_EQ(write(done[1], &byte, 1), 1);
  elsewhere.join();
}

TEST_F(NetlinkTest, SwapIsSeen) {
  const uint32_t index = Attach(1);
  ASSERT_TRUE(Shell(absl::StrCat("mkswap -q ", Path(index), " && swapon ", Path(index))));
  EXPECT_THAT(kernel_->Inspect(index)->mount_points, ElementsAre("swap"));
  EXPECT_TRUE(kernel_->FindUse(index)->claimed);
  ASSERT_TRUE(Shell(absl::StrCat("swapoff ", Path(index))));
  EXPECT_THAT(kernel_->Inspect(index)->mount_points, IsEmpty());
}

// A resize waits for the requests in flight, and holds the generic-netlink lock meanwhile. Not on 6.1, where
// it does not wait.
TEST_F(NetlinkTest, StuckCallIsLeftAndALateConnectUndone) {
  const uint32_t index = Attach(2);
  LibnlNbdKernelOptions options;
  options.call_timeout = absl::Milliseconds(100);
  const std::unique_ptr<LibnlNbdKernel> stuck = LibnlNbdKernel::Create(options);
  const std::unique_ptr<LibnlNbdKernel> behind = LibnlNbdKernel::Create(options);

  responder_.HoldReads();
  std::vector<uint8_t> sector;
  std::thread reader([&] { EXPECT_TRUE(ReadSector(index, 8192, sector)); });
  responder_.WaitUntilHolding();
  ReconfigureRequest resize;
  resize.index = index;
  resize.size_bytes = kSize / 2;
  resize.backend_identifier = kIdentifier;
  const absl::Status late = stuck->Reconfigure(resize);
  EXPECT_TRUE(absl::IsDeadlineExceeded(late)) << late;
  EXPECT_THAT(std::string(late.message()), HasSubstr(absl::StrCat("reconfigure ", Path(index))));
  const absl::Status refused = stuck->Disconnect(12);
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr(absl::StrCat("reconfigure ", Path(index))));

  NbdResponder other(kSize);
  ConnectRequest connect = RequestFor(other.AddSockets(1));
  connect.index = 9;
  EXPECT_TRUE(absl::IsDeadlineExceeded(behind->Connect(connect).status()));
  other.CloseKernelEnds();

  responder_.ReleaseReads();
  reader.join();
  other.WaitForDisconnects(1);  // The connect went through, and was taken back.
  EXPECT_TRUE(kernel_->WaitUntilFree(9, kLong).ok());
  absl::Status again;
  do {
    again = stuck->Disconnect(12);
  } while (absl::IsUnavailable(again));
  EXPECT_TRUE(again.ok()) << again;
  EXPECT_EQ(kernel_->Inspect(index)->size_bytes, kSize / 2);
}

TEST_F(NetlinkTest, SilentServerDoesNotHangTheWait) {
  ConnectRequest request = RequestFor(responder_.AddSockets(1));
  responder_.HoldReads();
  const absl::StatusOr<uint32_t> index = kernel_->Connect(request);
  ASSERT_TRUE(index.ok());
  responder_.CloseKernelEnds();
  const absl::Status status = kernel_->WaitUntilUsable(*index, kSize, absl::Milliseconds(50));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(Path(*index)));
}

TEST_F(NetlinkTest, NeedsPrivilege) {
  ConnectRequest request = RequestFor(responder_.AddSockets(1));
  EXPECT_TRUE(InChild([&] {
    if (setresuid(65534, 65534, 65534) != 0) return false;
    const absl::Status status = LibnlNbdKernel::Create()->Connect(request).status();
    if (!absl::IsPermissionDenied(status)) fprintf(stderr, "%s\n", status.ToString().c_str());
    return absl::IsPermissionDenied(status) && absl::StrContains(status.message(), "CAP_SYS_ADMIN");
  }));
}

TEST_F(NetlinkTest, ManyRoundsLeaveNothingBehind) {
  const auto descriptors = [] { return system("exit $(ls /proc/$PPID/fd | wc -l)"); };
  Attach(2);
  const int before = descriptors();
  Stopwatch connect, usable, disconnect, free;
  for (int round = 0; round < kRounds; ++round) {
    NbdResponder responder(kSize);
    connect.Start();
    const absl::StatusOr<uint32_t> index = kernel_->Connect(RequestFor(responder.AddSockets(2)));
    connect.Stop();
    ASSERT_TRUE(index.ok()) << index.status();
    responder.CloseKernelEnds();
    usable.Start();
    ASSERT_TRUE(kernel_->WaitUntilUsable(*index, kSize, kLong).ok());
    usable.Stop();
    disconnect.Start();
    ASSERT_TRUE(kernel_->Disconnect(*index).ok());
    disconnect.Stop();
    free.Start();
    ASSERT_TRUE(kernel_->WaitUntilFree(*index, kLong).ok());
    free.Stop();
  }
  printf("a round: connect %.1f ms, usable %.1f ms, disconnect %.1f ms, free %.1f ms\n",
         connect.Mean(kRounds), usable.Mean(kRounds), disconnect.Mean(kRounds), free.Mean(kRounds));
  EXPECT_EQ(descriptors(), before);
}

}  // namespace
}  // namespace berth::netlink
