// Two hundred attaches and detaches leave nothing behind.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/kernel/disk_server.h"

namespace berth::kernel_test {
namespace {

using testing::ElementsAreArray;
using testing::IsEmpty;

constexpr uint64_t kSize = 16 * kMebibyte;
constexpr int kCycles = 200;
// Caches, pools and the allocator have found their size by then.
constexpr int kWarmingUp = 40;
constexpr uint64_t kDevices = 4;

std::vector<std::string> ListNames(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    names.push_back(entry.path());
  std::sort(names.begin(), names.end());
  return names;
}

// The kernel's own, for its nbd devices; the shared workers only bear the name of what they did last.
std::vector<std::string> KernelThreads() {
  std::vector<std::string> threads;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = FirstWord(entry.path() / "comm");
    if (absl::StrContains(name, "nbd") && !absl::StartsWith(name, "kworker/u")) threads.push_back(name);
  }
  std::sort(threads.begin(), threads.end());
  return threads;
}

// What a process holds. Descriptors are told by what they lead to, so that the difference names them.
struct Holdings {
  std::vector<std::string> descriptors;
  std::vector<std::string> threads;
  uint64_t private_kilobytes = 0;
};

Holdings HoldingsOf(pid_t pid) {
  Holdings holdings;
  const std::string process = absl::StrCat("/proc/", pid);
  for (const auto& entry : std::filesystem::directory_iterator(process + "/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone);
    // Sockets differ by their numbers only.
    if (!gone) holdings.descriptors.push_back(target.substr(0, target.find('[')));
  }
  for (const auto& entry : std::filesystem::directory_iterator(process + "/task")) {
    holdings.threads.push_back(FirstWord(entry.path() / "comm"));
  }
  std::ifstream status(process + "/status");
  for (std::string word; status >> word;) {
    if (word == "RssAnon:") status >> holdings.private_kilobytes;
  }
  std::sort(holdings.descriptors.begin(), holdings.descriptors.end());
  std::sort(holdings.threads.begin(), holdings.threads.end());
  return holdings;
}

class CyclesTest : public testing::Test {
 protected:
  void SetUp() override {
    // With an arena a thread berthd's size would depend on which of gRPC's threads happened to serve.
    ASSERT_EQ(setenv("MALLOC_ARENA_MAX", "1", 1), 0);
    // What berthd remembers of events is bounded, and full after a few cycles.
    ASSERT_TRUE(server_.Start({"--event-history=16"}));
    ASSERT_TRUE(server_.CreateRawImage("disk.raw", kSize).ok());
    Shell(absl::StrCat("printf 'size=4MiB\\n' | sfdisk -q ", server_.Image("disk")));
    ASSERT_TRUE(server_.CreateRawExport("disk", "disk.raw").ok());
  }

  // One after another over all numbers of connections, with I/O in between.
  void RunCycles(int count) {
    const auto stub = v1::AttachmentService::NewStub(server_.channel());
    for (int i = 0; i < count && !HasFailure(); ++i) {
      v1::AttachRequest attach;
      attach.set_name("disk");
      attach.mutable_spec()->set_export_("disk");
      attach.mutable_spec()->set_connections(1u + static_cast<uint32_t>(i) % 4);
      v1::Attachment attachment;
      grpc::ClientContext attaching;
      const grpc::Status attached = stub->Attach(&attaching, attach, &attachment);
      ASSERT_TRUE(attached.ok()) << attached.error_message();
      ASSERT_EQ(attachment.partitions_size(), 1);
      ASSERT_EQ(WriteAt(attachment.partitions(0), 0, Pattern(static_cast<uint64_t>(i))), 0);
      v1::DetachRequest detach;
      detach.set_name("disk");
      google::protobuf::Empty empty;
      grpc::ClientContext detaching;
      const grpc::Status detached = stub->Detach(&detaching, detach, &empty);
      ASSERT_TRUE(detached.ok()) << detached.error_message();
      ASSERT_TRUE(IsFree(attachment.device()));
    }
  }

  // Holdings once they are at most those of `limit`: gRPC's threads leave a little after their calls.
  Holdings Settled(const Holdings& limit) {
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    while (true) {
      const Holdings holdings = HoldingsOf(server_.pid());
      if ((holdings.threads.size() <= limit.threads.size() &&
           holdings.descriptors.size() <= limit.descriptors.size()) ||
          absl::Now() >= deadline) {
        return holdings;
      }
      absl::SleepFor(absl::Milliseconds(10));
    }
  }

  DiskServer server_;
};

TEST_F(CyclesTest, TwoHundredLeaveNothingBehind) {
  const Holdings idle = HoldingsOf(server_.pid());
  const std::vector<std::string> state = ListNames(server_.state_directory());
  const std::vector<std::string> disks = ListNames("/sys/block");
  const std::vector<std::string> kernel_threads = KernelThreads();

  RunCycles(kWarmingUp);
  const Holdings warm = Settled(idle);
  RunCycles(kCycles - kWarmingUp);
  const Holdings after = Settled(warm);

  EXPECT_THAT(after.descriptors, ElementsAreArray(warm.descriptors));
  EXPECT_THAT(after.threads, testing::SizeIs(testing::Le(warm.threads.size())))
      << testing::PrintToString(after.threads);
  // A kilobyte a cycle would be 160.
  EXPECT_LE(after.private_kilobytes, warm.private_kilobytes + 128);
  std::printf("RssAnon: %lu KiB idle, %lu after %d cycles, %lu after %d\n", idle.private_kilobytes,
              warm.private_kilobytes, kWarmingUp, after.private_kilobytes, kCycles);
  EXPECT_THAT(ListNames(server_.state_directory()), ElementsAreArray(state));
  EXPECT_THAT(ListNames("/sys/block"), ElementsAreArray(disks));
  EXPECT_THAT(UsedDevices(), IsEmpty());
  EXPECT_THAT(KernelThreads(), ElementsAreArray(kernel_threads));
  EXPECT_EQ(ContentAt(server_.Image("disk"), kMebibyte, 4096), Pattern(kCycles - kWarmingUp - 1));
}

// As many at once, too.
TEST_F(CyclesTest, SeveralAtOnce) {
  std::vector<std::string> devices;
  for (uint64_t i = 0; i < kDevices; ++i) {
    const std::string name = absl::StrCat("disk", i);
    server_.CreateDisk(name, kSize);
    devices.push_back(server_.AttachDisk(name));
    EXPECT_EQ(WriteAt(devices.back(), 0, Pattern(i)), 0);
  }
  EXPECT_THAT(UsedDevices(), testing::SizeIs(kDevices));
  for (uint64_t i = 0; i < kDevices; ++i) {
    EXPECT_EQ(ContentAt(server_.Image(absl::StrCat("disk", i)), 0, 4096), Pattern(i));
    server_.DetachDisk(absl::StrCat("disk", i), devices[i]);
  }
}

}  // namespace
}  // namespace berth::kernel_test
