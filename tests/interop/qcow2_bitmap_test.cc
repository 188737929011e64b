// Dirty bitmaps that images keep: those of qemu are exact after we wrote, and ours after qemu did; after a
// power cut no bitmap that counts misses a change.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "image/opener/opener.h"
#include "image/qcow2/qcow2_device.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/conformance/reference_model.h"
#include "tests/fakes/power_cut_device.h"
#include "tests/interop/program.h"
#include "tests/interop/statuses.h"
#include "tests/interop/temporary_directory.h"

namespace berth::testing {
namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kSize = 3 * 1024 * 1024 + 1536;
constexpr uint64_t kGrain = 4096;

// Sector by sector, as a bitmap of this granularity has it.
class Expected {
 public:
  void Change(uint64_t offset, uint64_t length) {
    for (uint64_t grain = offset / kGrain; grain <= (offset + length - 1) / kGrain; ++grain) {
      for (uint64_t at = grain * kGrain; at < std::min((grain + 1) * kGrain, kSize); at += kSector) {
        sectors_[at / kSector] = 1;
      }
    }
  }
  void Clear() { std::fill(sectors_.begin(), sectors_.end(), 0); }
  const std::vector<uint64_t>& sectors() const { return sectors_; }

 private:
  std::vector<uint64_t> sectors_ = std::vector<uint64_t>(kSize / kSector);
};

class Qcow2BitmapTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }

  std::string Path(const std::string& name) const { return directory_.Path(name); }

  static void Run(const std::vector<std::string>& arguments) {
    const ProgramResult result = RunProgram(arguments);
    ASSERT_EQ(result.exit_code, 0) << arguments[0] << " " << arguments[1] << ": " << result.errors
                                   << result.output;
  }

  void NewImage(std::string options, uint64_t size = kSize) {
    if (const size_t at = options.find("DIRECTORY"); at != std::string::npos) {
      options.replace(at, 9, directory_.path());
    }
    Run({"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, Path("image"), std::to_string(size)});
  }

  void Bitmap(std::vector<std::string> options, const std::string& name) {
    options.insert(options.begin(), {"qemu-img", "bitmap", "-f", "qcow2"});
    options.insert(options.end(), {Path("image"), name});
    Run(options);
  }

  // As an export opens it.
  std::shared_ptr<BlockDevice> Open(bool read_only) {
    auto device = OpenImage({.format = ImageFormat::kQcow2, .path = Path("image"), .read_only = read_only},
                            ImageRoots::Anywhere());
    EXPECT_TRUE(device.ok()) << device.status();
    return device.ok() ? *std::move(device) : nullptr;
  }

  std::vector<uint64_t> Ours(BlockDevice& device, const std::string& name) {
    return Statuses(device, pool_->at(0), "qemu:dirty-bitmap:" + name);
  }
  std::vector<uint64_t> Qemus(const std::string& name) {
    return QemusStatuses(Path("image"), "qemu:dirty-bitmap:" + name, {"-B", name});
  }

  void ExpectClean() {
    const ProgramResult check = RunProgram({"qemu-img", "check", "-f", "qcow2", Path("image")});
    ASSERT_EQ(check.exit_code, 0) << check.output << check.errors;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<ReactorPool> pool_;
};

TEST_F(Qcow2BitmapTest, WeAndQemuFollowChangesInTurn) {
  const std::string grain = std::to_string(kGrain);
  for (const std::string options : {"cluster_size=64k", "cluster_size=512,refcount_bits=64",
                                    "extended_l2=on,lazy_refcounts=on", "data_file=DIRECTORY/data"}) {
    SCOPED_TRACE(options);
    NewImage(options);
    Bitmap({"--add", "-g", grain}, "follows");
    Bitmap({"--add", "--disable", "-g", grain}, "rests");
    std::mt19937_64 random(4);
    Expected follows;
    Expected rests;
    for (int turn = 0; turn < 4; ++turn) {
      std::vector<std::string> qemu = {"qemu-io", "-f", "qcow2", "-t", "unsafe"};
      for (int i = 0; i < 5; ++i) {
        const uint64_t length = kSector * (1 + random() % 60);
        const uint64_t offset = random() % ((kSize - length) / kSector) * kSector;
        qemu.insert(qemu.end(), {"-c", absl::StrCat("write ", offset, " ", length)});
        follows.Change(offset, length);
      }
      qemu.push_back(Path("image"));
      Run(qemu);
      {
        const std::shared_ptr<BlockDevice> device = Open(/*read_only=*/true);
        ASSERT_NE(device, nullptr);
        ASSERT_EQ(Ours(*device, "follows"), follows.sectors());
        ASSERT_EQ(Ours(*device, "rests"), rests.sectors());
      }
      {
        const std::shared_ptr<BlockDevice> device = Open(/*read_only=*/false);
        ASSERT_NE(device, nullptr);
        BlockingChannel channel(*device, pool_->at(0));
        for (int i = 0; i < 20; ++i) {
          const uint64_t length = 1 + random() % 40'000;
          const uint64_t offset = random() % (kSize - length);
          if (i % 3 == 0) {
            ASSERT_TRUE(channel.Zero(offset, length).ok());
          } else {
            ASSERT_TRUE(channel.Write(offset, PatternBytes(offset, length, 1)).ok());
          }
          follows.Change(offset, length);
        }
        ASSERT_TRUE(channel.Discard(1 << 20, 1 << 17).ok());
        follows.Change(1 << 20, 1 << 17);
        ASSERT_EQ(Ours(*device, "follows"), follows.sectors());
      }
      ExpectClean();
      ASSERT_EQ(Qemus("follows"), follows.sectors());
      ASSERT_EQ(Qemus("rests"), rests.sectors());
      if (turn == 1) {
        Bitmap({"--clear"}, "follows");
        follows.Clear();
        Bitmap({"--merge", "follows"}, "rests");
        ExpectClean();
      }
    }
  }
}

TEST_F(Qcow2BitmapTest, BitmapsAreClearedEnabledAndDisabled) {
  NewImage("cluster_size=4k");
  Bitmap({"--add", "-g", "4k"}, "one");
  Bitmap({"--add", "--disable", "-g", "4k"}, "two");
  Expected one;
  Expected two;
  for (int round = 0; round < 2; ++round) {
    {
      const std::shared_ptr<BlockDevice> opened = Open(/*read_only=*/false);
      auto* const device = dynamic_cast<Qcow2Device*>(opened.get());
      ASSERT_NE(device, nullptr);
      BlockingChannel channel(*device, pool_->at(0));
      ASSERT_TRUE(channel.Write(0, PatternBytes(0, 100'000, 1)).ok());
      EXPECT_TRUE(device->ClearBitmap("one").ok());
      EXPECT_TRUE(device->EnableBitmap("two", true).ok());
      ASSERT_TRUE(channel.Write(500'000, PatternBytes(0, 9000, 1)).ok());
      EXPECT_TRUE(device->EnableBitmap("one", false).ok());
      ASSERT_TRUE(channel.Write(700'000, PatternBytes(0, 9000, 1)).ok());
      if (round == 1) {
        EXPECT_TRUE(device->EnableBitmap("one", true).ok());
      }
      EXPECT_EQ(device->ClearBitmap("three").code(), absl::StatusCode::kNotFound);
      one.Clear();
      // In the second round it is disabled meanwhile.
      if (round == 0) one.Change(500'000, 9000);
      if (round == 1) two.Change(0, 100'000);
      two.Change(500'000, 9000);
      two.Change(700'000, 9000);
    }
    ExpectClean();
    EXPECT_EQ(Qemus("one"), one.sectors());
    EXPECT_EQ(Qemus("two"), two.sectors());
  }
  const std::shared_ptr<BlockDevice> reader = Open(/*read_only=*/true);
  EXPECT_EQ(dynamic_cast<Qcow2Device*>(reader.get())->ClearBitmap("one").code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(Qcow2BitmapTest, QemuFindsBitmapsThatWeMadeAndNoneThatWeDeleted) {
  // With a name behind the header, and in a first cluster that is full.
  Run({"qemu-img", "create", "-q", "-f", "raw", Path("base"), std::to_string(kSize)});
  for (const bool overlay : {false, true}) {
    SCOPED_TRACE(overlay);
    std::vector<std::string> create = {"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"};
    if (overlay) create.insert(create.end(), {"-F", "raw", "-b", Path("base")});
    create.insert(create.end(), {Path("image"), std::to_string(kSize)});
    Run(create);
    Expected expected;
    for (int round = 0; round < 3; ++round) {
      SCOPED_TRACE(round);
      {
        const std::shared_ptr<BlockDevice> opened = Open(/*read_only=*/false);
        auto* const device = dynamic_cast<Qcow2Device*>(opened.get());
        ASSERT_NE(device, nullptr);
        BlockingChannel channel(*device, pool_->at(0));
        ASSERT_TRUE(channel.Write(900'000, PatternBytes(0, 5000, 1)).ok());
        if (round == 0) {
          EXPECT_TRUE(device->CreateBitmap("kept", 12).ok());
          EXPECT_TRUE(device->CreateBitmap("other", 16).ok());
          EXPECT_EQ(device->CreateBitmap("kept", 12).code(), absl::StatusCode::kAlreadyExists);
          EXPECT_EQ(device->CreateBitmap("fine", 8).code(), absl::StatusCode::kInvalidArgument);
        } else {
          expected.Change(900'000, 5000);
        }
        if (round == 1) {
          EXPECT_TRUE(device->DeleteBitmap("other").ok());
          EXPECT_EQ(Ours(*device, "other").size(), 0u);
        }
        ASSERT_TRUE(channel.Write(10'000, PatternBytes(0, 5000, 1)).ok());
        expected.Change(10'000, 5000);
        ASSERT_EQ(Ours(*device, "kept"), expected.sectors());
        if (round == 2) {
          EXPECT_TRUE(device->DeleteBitmap("kept").ok());
        }
      }
      ExpectClean();
      const std::string info = RunProgram({"qemu-img", "info", "-U", Path("image")}).output;
      EXPECT_EQ(info.find("name: kept") != std::string::npos, round < 2) << info;
      EXPECT_EQ(info.find("name: other") != std::string::npos, round == 0) << info;
      EXPECT_EQ(info.find("backing file: " + Path("base")) != std::string::npos, overlay) << info;
      if (round < 2) {
        ASSERT_EQ(Qemus("kept"), expected.sectors());
      }
    }
  }
}

// Who opened an image and did not close it leaves bitmaps that nobody takes for what they are not.
TEST_F(Qcow2BitmapTest, AfterAPowerCutNoBitmapMissesAChange) {
  constexpr uint64_t kSmall = 400 * 1024;
  for (const bool makes_one : {false, true}) {
    const std::string options = makes_one ? "cluster_size=4k" : "cluster_size=512";
    SCOPED_TRACE(options);
    NewImage(options, kSmall);
    Bitmap({"--add", "-g", "512"}, "bitmap");
    Run({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 300k", Path("image")});
    Bitmap({"--clear"}, "bitmap");
    const std::string bytes = ReadFile(Path("image"));
    const std::vector<uint8_t> initial(bytes.begin(), bytes.end());
    const auto disk = [this](const std::vector<uint8_t>& content) {
      std::shared_ptr<BlockDevice> device = *MemoryDevice::Create(content.size());
      EXPECT_TRUE(BlockingChannel(*device, pool_->at(0)).Write(0, content).ok());
      return device;
    };
    const auto open = [](std::shared_ptr<BlockDevice> image, bool writable) {
      const auto header = ReadQcow2Header(*image);
      EXPECT_TRUE(header.ok()) << header.status();
      Qcow2Options qcow2;
      qcow2.writable = writable;
      qcow2.bitmaps = true;
      return Qcow2Device::Open({std::move(image), nullptr, nullptr}, *header, qcow2);
    };
    const std::vector<uint8_t> before =
        BlockingChannel(**open(disk(initial), false), pool_->at(0)).Read(0, kSmall);
    auto cut = std::make_shared<PowerCutDevice>(disk(initial), initial);
    std::mt19937_64 random(6);
    size_t opened = 0;
    {
      auto device = open(cut, true);
      ASSERT_TRUE(device.ok()) << device.status();
      opened = cut->moments();
      BlockingChannel channel(**device, pool_->at(0));
      if (makes_one) {
        ASSERT_TRUE((*device)->CreateBitmap("new", 12).ok());
      }
      for (int i = 0; i < 40; ++i) {
        const uint64_t length = kSector * (1 + random() % 10);
        const uint64_t offset = random() % ((kSmall - length) / kSector) * kSector;
        ASSERT_TRUE(channel.Write(offset, PatternBytes(offset, length, 2)).ok());
        if (i % 8 == 0) {
          ASSERT_TRUE(channel.Flush().ok());
        }
      }
    }
    const size_t moments = cut->moments();
    int trusted = 0;
    for (int trial = 0; trial < 60; ++trial) {
      // Many of them around the beginning and the end.
      const size_t moment = trial == 0       ? moments
                            : trial % 3 == 0 ? random() % (opened + 12)
                            : trial % 3 == 1 ? moments - random() % 60
                                             : random() % (moments + 1);
      SCOPED_TRACE(absl::StrCat("cut at ", moment, " of ", moments));
      const std::vector<uint8_t> left = cut->DiskAfterCut(std::min(moment, moments), random);
      WriteFile(Path("image"), std::string(left.begin(), left.end()));
      const ProgramResult check = RunProgram({"qemu-img", "check", "-f", "qcow2", Path("image")});
      ASSERT_TRUE(check.exit_code == 0 || (check.exit_code == 3 && trial != 0))
          << check.output << check.errors;
      auto device = open(disk(left), false);
      ASSERT_TRUE(device.ok()) << device.status();
      const std::vector<uint64_t> dirty = Ours(**device, "bitmap");
      if (dirty.empty()) continue;
      ++trusted;
      const std::vector<uint8_t> after = BlockingChannel(**device, pool_->at(0)).Read(0, kSmall);
      for (size_t i = 0; i < dirty.size(); ++i) {
        const auto at = static_cast<ptrdiff_t>(i * kSector);
        if (dirty[i] == 1) continue;
        ASSERT_TRUE(std::equal(before.begin() + at, before.begin() + at + kSector, after.begin() + at))
            << "sector " << i << " changed";
      }
    }
    EXPECT_GT(trusted, 1);
    EXPECT_LT(trusted, 60);
  }
}

}  // namespace
}  // namespace berth::testing
