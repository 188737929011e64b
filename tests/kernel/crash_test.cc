// berthd is killed at random moments under load, and comes back: nobody above the device notices more than a
// pause.
//
// BERTH_CRASH_KILLS: how many kills in all (20 by itself). BERTH_CRASH_SEED: repeats a run's moments, as far
// as the machine lets it. `bazel test --test_env=BERTH_CRASH_KILLS=200 --test_timeout=3000
// //tests/kernel:crash_test`

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/kernel/disk_server.h"
#include "tests/kernel/writers.h"

namespace berth::kernel_test {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr uint64_t kSize = 96 * kMebibyte;
constexpr int kKilled = 128 + SIGKILL;
// Of the device: what was in flight is sent again after this.
constexpr int64_t kTimeoutSeconds = 6;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* const text = std::getenv(name);
  uint64_t value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

// fio, which writes and verifies a file of its own until Stop().
class Fio {
 public:
  explicit Fio(const Mount& mount) : pid_file_(absl::StrCat(mount.folder(), ".fio")) {
    const std::string script =
        absl::StrCat("echo $$ >", pid_file_, "; exec /usr/bin/fio --name=crash --directory=", mount.folder(),
                     " --size=16M --rw=randwrite --bs=4k-64k --direct=1 --ioengine=libaio --iodepth=16 "
                     "--fsync=64 --verify=crc32c --verify_fatal=1 --verify_backlog=32 --randrepeat=0 "
                     "--time_based --runtime=3000 --output-format=json");
    thread_ = std::thread([this, script] {
      result_ = control::RunProcess({"/bin/sh", "-c", script}, absl::Minutes(50));
    });
  }
  ~Fio() { Stop(); }

  // What it said; a failed expectation where anything was wrong.
  void Stop() {
    if (!thread_.joinable()) return;
    pid_t pid = 0;
    if (absl::SimpleAtoi(FirstWord(pid_file_), &pid)) kill(pid, SIGINT);
    thread_.join();
    // As it was interrupted; an I/O error or a wrong block is 1.
    EXPECT_EQ(result_.exit_code, 128) << result_.output;
    EXPECT_THAT(result_.output, HasSubstr("\"error\" : 0"));
    EXPECT_THAT(result_.output, Not(HasSubstr("verify:")));
  }

 private:
  const std::string pid_file_;
  control::ProcessResult result_;
  std::thread thread_;
};

struct Disk {
  uint32_t connections;
  v1::ImageFormat format;
};

void PrintTo(const Disk& disk, std::ostream* out) {
  *out << disk.connections << (disk.format == v1::IMAGE_FORMAT_QCOW2 ? " qcow2" : " raw");
}

constexpr Disk kDisks[] = {{1, v1::IMAGE_FORMAT_RAW}, {4, v1::IMAGE_FORMAT_RAW}, {4, v1::IMAGE_FORMAT_QCOW2}};

class CrashTest : public testing::TestWithParam<Disk> {
 protected:
  void SetUp() override {
    const uint64_t seed = FromEnvironment("BERTH_CRASH_SEED", std::random_device()());
    random_.seed(seed);
    std::cout << "BERTH_CRASH_SEED=" << seed << std::endl;
    kills_ = FromEnvironment("BERTH_CRASH_KILLS", 20) / std::size(kDisks);
    // How long a start takes on this machine.
    ASSERT_TRUE(server_.Start());
    server_.Stop();
    const absl::Time begin = absl::Now();
    ASSERT_TRUE(server_.Start());
    starts_.push_back(absl::Now() - begin);
    if (IsQcow2()) {
      Shell(absl::StrCat("qemu-img create -q -f qcow2 ", server_.Image("disk"), " ", kSize));
      v1::ExportSpec spec = server_.SpecOf("disk");
      spec.mutable_image()->set_format(v1::IMAGE_FORMAT_QCOW2);
      // The mapping of what is not flushed is in berthd's memory alone: docs/operations.md.
      spec.mutable_image()->set_cache(v1::CACHE_MODE_WRITETHROUGH);
      const grpc::Status created = server_.CreateExport("disk", spec);
      ASSERT_TRUE(created.ok()) << created.error_message();
    } else {
      server_.CreateDisk("disk", kSize);
    }
    v1::AttachmentSpec spec;
    spec.set_connections(GetParam().connections);
    spec.mutable_timeout()->set_seconds(kTimeoutSeconds);
    device_ = server_.AttachDisk("disk", spec);
    Shell(absl::StrCat("mkfs.ext4 -q ", device_));
  }

  static bool IsQcow2() { return GetParam().format == v1::IMAGE_FORMAT_QCOW2; }

  void SleepUpTo(int milliseconds) {
    absl::SleepFor(absl::Milliseconds(std::uniform_int_distribution<int>(0, milliseconds)(random_)));
  }

  void Kill() {
    ASSERT_EQ(server_.Stop(SIGKILL), kKilled);
    ++killed_;
  }

  // Kills the running berthd and brings one back, perhaps after it was killed once more on its way.
  void KillAndStart() {
    ASSERT_NO_FATAL_FAILURE(Kill());
    switch (killed_ % 4) {
      case 1:  // Somewhere in its recovery, or shortly after.
        server_.Launch();
        SleepUpTo(static_cast<int>(absl::ToInt64Milliseconds(starts_.front())));
        ASSERT_NO_FATAL_FAILURE(Kill());
        break;
      case 3:  // As soon as it is ready.
        ASSERT_TRUE(server_.Start());
        ASSERT_NO_FATAL_FAILURE(Kill());
        break;
      default:
        break;
    }
    const absl::Time begin = absl::Now();
    ASSERT_TRUE(server_.Start());
    starts_.push_back(absl::Now() - begin);
  }

  void ExpectAttached() {
    v1::Attachment attachment;
    const grpc::Status status = server_.GetAttachment("disk", &attachment);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(attachment.state(), v1::ATTACHMENT_STATE_ATTACHED) << attachment.error();
    EXPECT_EQ(attachment.device(), device_);
  }

  void Report(const std::string& what, std::vector<absl::Duration> durations) {
    std::sort(durations.begin(), durations.end());
    if (durations.empty()) return;
    const auto at = [&](double part) {
      const auto index = static_cast<size_t>(part * static_cast<double>(durations.size() - 1));
      return absl::FormatDuration(absl::Trunc(durations[index], absl::Milliseconds(1)));
    };
    const std::string text = absl::StrCat(durations.size(), " of them, median ", at(0.5), ", 90 % ", at(0.9),
                                          ", 99 % ", at(0.99), ", longest ", at(1));
    std::cout << what << ": " << text << std::endl;
    RecordProperty(what, text);
  }

  DiskServer server_;
  std::string device_;
  std::mt19937_64 random_;
  uint64_t kills_ = 0;
  uint64_t killed_ = 0;
  std::vector<absl::Duration> starts_;
};

TEST_P(CrashTest, NobodyAboveTheDeviceNoticesMoreThanAPause) {
  // An error of the journal or of the metadata shows at once.
  Mount mount(device_, "ext4", server_.Path("mnt"), 0, "errors=remount-ro");
  Writers writers(mount, 4);
  ASSERT_TRUE(writers.WaitForRounds(5));
  {
    Fio fio(mount);
    while (killed_ < kills_) {
      SleepUpTo(1000);
      SCOPED_TRACE(absl::StrCat("after ", killed_, " kills"));
      ASSERT_NO_FATAL_FAILURE(KillAndStart());
      ASSERT_NO_FATAL_FAILURE(ExpectAttached());
      // Now and then the next kill comes while requests still wait for their resend.
      if (killed_ % 3 != 0) {
        ASSERT_TRUE(writers.WaitForRounds(3));
      }
    }
    ASSERT_TRUE(writers.WaitForRounds(3));
    fio.Stop();
  }
  writers.Stop();
  Report("starts", starts_);
  Report("rounds_of_a_writer", writers.Rounds());
  // What waited for a resend waited a timeout a kill at most; more is a hang that something else ended.
  std::vector<absl::Duration> stalls = writers.Rounds();
  stalls.erase(stalls.begin(), std::lower_bound(stalls.begin(), stalls.end(), absl::Seconds(1)));
  Report("stalls_over_1s", stalls);

  writers.ExpectIntact(mount);
  ASSERT_TRUE(mount.Unmount());
  Shell(absl::StrCat("e2fsck -f -n ", device_));
  {
    Mount again(device_, "ext4", server_.Path("mnt"));
    writers.ExpectIntact(again);
  }
  server_.DetachDisk("disk", device_);
  if (IsQcow2()) {
    EXPECT_EQ(server_.Stop(), 0);
    Shell(absl::StrCat("qemu-img check ", server_.Image("disk")));
  } else {
    Shell(absl::StrCat("e2fsck -f -n ", server_.Image("disk")));
  }
  EXPECT_THAT(UsedDevices(), IsEmpty());
}

// Killed while it waits for its own device, which no signal ends: the opening and reading of it at the end of
// an attach. Its death must be seen all the same, as the device waits for the next one.
TEST(CrashedAttachTest, IsTakenBack) {
  DiskServer server;
  ASSERT_TRUE(server.Start());
  ASSERT_TRUE(server.CreateRawImage("disk.raw", kSize).ok());
  v1::ExportSpec slow = server.SpecOf("disk");
  slow.mutable_rate_limit()->set_operations_per_second(1);
  slow.mutable_rate_limit()->set_burst_operations(1);
  ASSERT_TRUE(server.CreateExport("disk", slow).ok());
  std::thread attach([&server] {
    v1::AttachmentSpec spec;
    spec.mutable_timeout()->set_seconds(kTimeoutSeconds);
    v1::Attachment attachment;
    EXPECT_FALSE(server.Attach("disk", "disk", &attachment, spec).ok());
  });
  // The first of the reads is through, and the next has to wait.
  const absl::Time deadline = absl::Now() + absl::Minutes(1);
  while (server.Statistics("disk", v1::IO_OPERATION_READ).completed() == 0 && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  const absl::Time killed = absl::Now();
  EXPECT_EQ(server.Stop(SIGKILL), kKilled);
  std::cout << "gone after " << absl::Now() - killed << std::endl;
  attach.join();
  // CONNECT was carried out and never acknowledged: ours, and there.
  ASSERT_TRUE(server.Start());
  v1::Attachment attachment;
  ASSERT_TRUE(server.GetAttachment("disk", &attachment).ok());
  EXPECT_EQ(attachment.state(), v1::ATTACHMENT_STATE_ATTACHED) << attachment.error();
  // What the dead one had begun to read has the device open until its read has ended. By force the device
  // would go earlier, and the read with an error.
  while (!server.Detach("disk", false).ok() && absl::Now() < deadline + absl::Minutes(1)) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  while (!UsedDevices().empty() && absl::Now() < deadline + absl::Minutes(1)) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_THAT(UsedDevices(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Disks, CrashTest, testing::ValuesIn(kDisks));

}  // namespace
}  // namespace berth::kernel_test
