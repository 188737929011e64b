// What the users of a device see when the image below fails, or when their device is taken away.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "berth/v1/monitoring.grpc.pb.h"
#include "image/io/unique_fd.h"
#include "tests/kernel/disk_server.h"

namespace berth::kernel_test {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kSize = 32 * kMebibyte;
constexpr size_t kBlock = 4096;
constexpr size_t kChunk = 16 * kBlock;

// Another export beside the one in trouble, which must not notice.
class TroubleTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(server_.Start({"--operation-timeout=5s"}));
    server_.CreateDisk("other", kSize);
    other_ = server_.AttachDisk("other");
    ASSERT_EQ(WriteAt(other_, 0, Pattern(77)), 0);
  }
  void TearDown() override {
    EXPECT_EQ(ContentAt(other_, 0, kBlock), Pattern(77));
    server_.DetachDisk("other", other_);
    EXPECT_THAT(UsedDevices(), IsEmpty());
    EXPECT_EQ(server_.Stop(), 0);
  }

  DiskServer server_;
  std::string other_;
};

TEST_F(TroubleTest, AFullDiskIsAnErrorOfTheWrite) {
  Mount small("tmpfs", "tmpfs", server_.Path("small"), 0, "size=8M");
  ASSERT_TRUE(server_.CreateRawImage("small/disk.raw", kSize).ok());
  ASSERT_TRUE(server_.CreateRawExport("disk", "small/disk.raw").ok());
  const std::string device = server_.AttachDisk("disk");
  const auto chunk = [](uint64_t offset) {
    std::string text;
    for (int i = 0; i < 16; ++i) text += Pattern(offset);
    return text;
  };
  uint64_t written = 0;
  int error = 0;
  while (written < kSize) {
    error = WriteAt(device, written, chunk(written));
    if (error != 0) break;
    written += kChunk;
    if (written == 6 * kMebibyte) Shell(absl::StrCat("fallocate -l 1M ", small.Path("filler")));
  }
  // The kernel has one error for all that a server tells.
  EXPECT_EQ(error, EIO);
  EXPECT_GT(written, 6 * kMebibyte);
  EXPECT_LT(written, 8 * kMebibyte);
  EXPECT_GT(server_.Statistics("disk", v1::IO_OPERATION_WRITE).errors(), 0u);
  for (uint64_t offset = 0; offset < written; offset += kMebibyte) {
    EXPECT_EQ(ContentAt(device, offset, kBlock), Pattern(offset));
  }
  // Space is there again, and writes succeed.
  Shell(absl::StrCat("rm ", small.Path("filler")));
  EXPECT_EQ(WriteAt(device, written, chunk(written)), 0);
  EXPECT_EQ(ContentAt(small.Path("disk.raw"), written, kChunk), chunk(written));
  server_.DetachDisk("disk", device);

  // Without its image the export comes back as one that cannot be used, and says why.
  EXPECT_EQ(server_.Stop(), 0);
  EXPECT_TRUE(small.Unmount());
  ASSERT_TRUE(server_.Start());
  EXPECT_THAT(server_.GetExport("disk").error(), HasSubstr("small/disk.raw"));
}

TEST_F(TroubleTest, ATruncatedImageIsAnErrorOfTheRead) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk");
  ASSERT_EQ(WriteAt(device, 0, Pattern(1)), 0);
  ASSERT_EQ(WriteAt(device, 16 * kMebibyte, Pattern(2)), 0);
  ASSERT_EQ(truncate(server_.Image("disk").c_str(), 8 * kMebibyte), 0);
  EXPECT_EQ(ContentAt(device, 0, kBlock), Pattern(1));
  std::string data;
  EXPECT_EQ(ReadAt(device, 16 * kMebibyte, kBlock, &data), EIO);
  EXPECT_GT(server_.Statistics("disk", v1::IO_OPERATION_READ).errors(), 0u);
  server_.DetachDisk("disk", device);
}

TEST_F(TroubleTest, AnUnlinkedImageServesOn) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk");
  ASSERT_EQ(unlink(server_.Image("disk").c_str()), 0);
  EXPECT_EQ(WriteAt(device, 0, Pattern(1)), 0);
  EXPECT_EQ(ContentAt(device, 0, kBlock), Pattern(1));
  server_.DetachDisk("disk", device);
}

TEST_F(TroubleTest, AForcedDetachEndsAReader) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk");
  std::atomic<uint64_t> reads = 0;
  int error = 0;
  std::thread reader([&] {
    const UniqueFd fd(open(device.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
    void* buffer = std::aligned_alloc(kBlock, kBlock);
    // It leaves at its first error, and with it the last use of the device.
    while (pread(fd.get(), buffer, kBlock, 0) == static_cast<ssize_t>(kBlock)) ++reads;
    error = errno;
    std::free(buffer);
  });
  while (reads < 10) std::this_thread::yield();
  const grpc::Status refused = server_.Detach("disk");
  EXPECT_EQ(control::ReasonOf(refused), "DEVICE_HELD") << refused.error_message();
  const uint64_t before = reads;
  while (reads < before + 10) std::this_thread::yield();

  const grpc::Status forced = server_.Detach("disk", true);
  EXPECT_TRUE(forced.ok()) << forced.error_message();
  reader.join();
  EXPECT_EQ(error, EIO);
  EXPECT_TRUE(IsFree(device));
  EXPECT_THAT(server_.GetExport("disk").attachments(), IsEmpty());
  // And it can be had again.
  EXPECT_EQ(server_.AttachDisk("disk"), device);
  EXPECT_EQ(ContentAt(device, 0, kBlock), std::string(kBlock, '\0'));
  server_.DetachDisk("disk", device);
}

// What happens to attachments from its construction on.
class AttachmentEvents {
 public:
  explicit AttachmentEvents(const DiskServer& server)
      : stub_(v1::MonitoringService::NewStub(server.channel())) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(2));
    reader_ = stub_->WatchEvents(&context_, {});
    reader_->WaitForInitialMetadata();
  }
  ~AttachmentEvents() {
    context_.TryCancel();
    v1::Event event;
    while (reader_->Read(&event)) {
    }
    (void)reader_->Finish();
  }

  // The next of `type` for `attachment`; an empty one, and a failed expectation, where none comes.
  v1::Event WaitFor(v1::EventType type, const std::string& attachment) {
    v1::Event event;
    while (reader_->Read(&event)) {
      if (event.type() == type && event.attachment() == attachment) return event;
    }
    ADD_FAILURE() << "no event " << v1::EventType_Name(type);
    return {};
  }

 private:
  const std::unique_ptr<v1::MonitoringService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::Event>> reader_;
};

TEST_F(TroubleTest, AForcedDetachOfAMountIsFinishedByTheUnmount) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk");
  Shell(absl::StrCat("mkfs.ext4 -q ", device));
  Mount mount(device, "ext4", server_.Path("mnt"));
  std::ofstream(mount.Path("file")) << "written before";
  Shell("sync");
  {
    AttachmentEvents events(server_);
    const grpc::Status forced = server_.Detach("disk", true);
    EXPECT_EQ(control::ReasonOf(forced), "DETACHING") << forced.error_message();
    EXPECT_THAT(forced.error_message(), HasSubstr(mount.folder()));
    EXPECT_THAT(events.WaitFor(v1::EVENT_TYPE_DETACHING, "disk").message(), HasSubstr(mount.folder()));
  }
  EXPECT_FALSE(IsFree(device));
  // Its users get errors, at once.
  EXPECT_NE(
      system(absl::StrCat("dd if=/dev/zero bs=4k count=1 oflag=direct status=none of=", mount.Path("more"))
                 .c_str()),
      0);
  // The image serves others.
  v1::Attachment second;
  ASSERT_TRUE(server_.Attach("second", "disk", &second).ok());
  EXPECT_NE(second.device(), device);
  EXPECT_EQ(WriteAt(second.device(), kSize - kBlock, Pattern(3)), 0);
  server_.DetachDisk("second", second.device());

  // A restarted berthd goes on waiting.
  EXPECT_EQ(server_.Stop(), 0);
  ASSERT_TRUE(server_.Start({"--operation-timeout=5s"}));
  v1::Attachment shown;
  ASSERT_TRUE(server_.GetAttachment("disk", &shown).ok());
  EXPECT_EQ(shown.state(), v1::ATTACHMENT_STATE_DETACHING) << shown.error();
  EXPECT_EQ(shown.device(), device);
  EXPECT_THAT(shown.error(), HasSubstr(mount.folder()));
  AttachmentEvents events(server_);
  EXPECT_TRUE(mount.Unmount());
  EXPECT_EQ(events.WaitFor(v1::EVENT_TYPE_DETACHED, "disk").device(), device);
  EXPECT_TRUE(IsFree(device));
  EXPECT_EQ(server_.Detach("disk").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_NE(access(absl::StrCat(server_.state_directory(), "/attachments/disk.json").c_str(), F_OK), 0);

  Shell(absl::StrCat("e2fsck -f -p ", server_.Image("disk"), " || test $? = 1"));
  EXPECT_THAT(OutputOf(absl::StrCat("debugfs -R 'cat /file' ", server_.Image("disk"), " 2>/dev/null")),
              HasSubstr("written before"));
  EXPECT_EQ(server_.AttachDisk("disk"), device);
  server_.DetachDisk("disk", device);
}

// A process that keeps the device open, and does not leave at its errors.
TEST_F(TroubleTest, AForcedDetachOfAnOpenFileIsFinishedByItsEnd) {
  server_.CreateDisk("disk", kSize);
  const std::string device = server_.AttachDisk("disk");
  UniqueFd fd(open(device.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(fd);
  AttachmentEvents events(server_);
  const grpc::Status forced = server_.Detach("disk", true);
  EXPECT_EQ(control::ReasonOf(forced), "DETACHING") << forced.error_message();
  EXPECT_THAT(forced.error_message(), HasSubstr(absl::StrCat("(pid ", getpid(), ")")));
  EXPECT_EQ(control::ReasonOf(server_.Detach("disk")), "DETACHING");
  fd.Reset();
  EXPECT_EQ(events.WaitFor(v1::EVENT_TYPE_DETACHED, "disk").device(), device);
  EXPECT_TRUE(IsFree(device));
}

// A disk below the image that does not answer, for as long as it is suspended.
class HangingDisk {
 public:
  explicit HangingDisk(const std::string& file) {
    Shell(absl::StrCat("truncate -s ", kSize, " ", file));
    loop_ = OutputOf(absl::StrCat("losetup --find --show ", file));
    Shell(
        absl::StrCat("echo '0 ", kSize / 512, " linear ", loop_, " 0' | dmsetup create --noudevsync hangs"));
    Shell("dmsetup mknodes hangs");
  }
  ~HangingDisk() {
    Resume();
    Shell("dmsetup remove --noudevsync --retry hangs");
    Shell(absl::StrCat("losetup -d ", loop_));
  }
  std::string path() const { return "/dev/mapper/hangs"; }
  void Suspend() { Shell("dmsetup suspend --noflush --nolockfs --noudevsync hangs"); }
  void Resume() { Shell("dmsetup resume --noudevsync hangs"); }

 private:
  std::string loop_;
};

TEST(HangingDiskTest, FailsItsOwnRequestsAndNobodyElses) {
  DiskServer server;
  ASSERT_TRUE(server.Start({"--image-root=/dev"}));
  server.CreateDisk("other", kSize);
  const std::string other = server.AttachDisk("other");
  HangingDisk disk(server.Path("below.img"));
  v1::ExportSpec spec = server.SpecOf("disk");
  spec.mutable_image()->set_path(OutputOf(absl::StrCat("readlink -f ", disk.path())));
  spec.mutable_image()->set_cache(
      v1::CACHE_MODE_NONE);  // Or the page cache would take what the disk does not.
  const grpc::Status created = server.CreateExport("disk", spec);
  ASSERT_TRUE(created.ok()) << created.error_message();
  v1::AttachmentSpec timeouts;
  timeouts.mutable_timeout()->set_seconds(6);  // So that the requests have four.
  const std::string device = server.AttachDisk("disk", timeouts);
  ASSERT_EQ(WriteAt(device, 0, Pattern(1)), 0);

  disk.Suspend();
  // More than the kernel gives workers to a ring by itself.
  std::vector<std::thread> threads;
  std::atomic<int> failed = 0;
  for (int i = 0; i < 24; ++i) {
    threads.emplace_back([&, i] {
      if (WriteAt(device, static_cast<uint64_t>(i + 1) * kMebibyte, Pattern(5)) == EIO) ++failed;
    });
  }
  // While they wait, and afterwards: the other one is written through to its disk.
  for (int round = 0; failed < 24 && round < 1000; ++round) {
    ASSERT_EQ(WriteAt(other, static_cast<uint64_t>(round % 16) * kBlock, Pattern(2), O_DSYNC), 0);
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 24);
  EXPECT_EQ(WriteAt(other, 0, Pattern(3), O_DSYNC), 0);
  v1::Attachment shown;
  ASSERT_TRUE(server.GetAttachment("disk", &shown).ok());
  EXPECT_EQ(shown.state(), v1::ATTACHMENT_STATE_ATTACHED) << shown.error();
  EXPECT_GE(server.Statistics("disk", v1::IO_OPERATION_WRITE).errors(), 24u);
  EXPECT_EQ(server.Statistics("other", v1::IO_OPERATION_FLUSH).errors(), 0u);

  disk.Resume();
  EXPECT_EQ(ContentAt(device, 0, kBlock).size(), kBlock);
  EXPECT_EQ(WriteAt(device, 0, Pattern(4), O_DSYNC), 0);
  EXPECT_EQ(ContentAt(device, 0, kBlock), Pattern(4));
  server.DetachDisk("disk", device);
  server.DetachDisk("other", other);
  EXPECT_EQ(server.Stop(), 0);
}

// A write past the page cache is on its way when berthd is killed, and the process is gone before it has
// arrived. Nobody else may have the image until then: it would land after what the next berthd writes.
TEST(HangingDiskTest, AWriteOfADeadBerthdIsWaitedFor) {
  DiskServer server;
  ASSERT_TRUE(server.Start({"--image-root=/dev"}));
  HangingDisk disk(server.Path("below.img"));
  v1::ExportSpec spec = server.SpecOf("disk");
  spec.mutable_image()->set_path(OutputOf(absl::StrCat("readlink -f ", disk.path())));
  spec.mutable_image()->set_cache(v1::CACHE_MODE_NONE);
  const grpc::Status created = server.CreateExport("disk", spec);
  ASSERT_TRUE(created.ok()) << created.error_message();
  v1::AttachmentSpec timeouts;
  timeouts.mutable_timeout()->set_seconds(6);
  const std::string device = server.AttachDisk("disk", timeouts);
  disk.Suspend();
  // Its deadline has passed, so it is there.
  EXPECT_EQ(WriteAt(device, 0, Pattern(1)), EIO);
  EXPECT_EQ(server.Stop(SIGKILL), 128 + SIGKILL);

  ASSERT_TRUE(server.Start({"--image-root=/dev"}));
  v1::Attachment shown;
  ASSERT_TRUE(server.GetAttachment("disk", &shown).ok());
  EXPECT_EQ(shown.state(), v1::ATTACHMENT_STATE_FAILED);
  EXPECT_THAT(shown.error(), HasSubstr("is in use"));
  disk.Resume();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (shown.state() != v1::ATTACHMENT_STATE_ATTACHED && std::chrono::steady_clock::now() < deadline) {
    ASSERT_TRUE(server.GetAttachment("disk", &shown).ok());
  }
  EXPECT_EQ(shown.state(), v1::ATTACHMENT_STATE_ATTACHED) << shown.error();
  EXPECT_EQ(shown.device(), device);
  EXPECT_EQ(WriteAt(device, 0, Pattern(2)), 0);
  EXPECT_EQ(ContentAt(device, 0, kBlock), Pattern(2));
  server.DetachDisk("disk", device);
  EXPECT_EQ(server.Stop(), 0);
}

}  // namespace
}  // namespace berth::kernel_test
