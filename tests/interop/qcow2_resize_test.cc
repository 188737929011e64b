// qcow2 images get other sizes: qemu-img check finds nothing, what is cut off comes back as zeroes, space is
// given back, and a power cut at any moment leaves the old size or the new one and nothing broken.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "image/opener/opener.h"
#include "image/opener/qcow2_files.h"
#include "image/qcow2/qcow2_device.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/conformance/reference_model.h"
#include "tests/fakes/power_cut_device.h"
#include "tests/interop/program.h"
#include "tests/interop/temporary_directory.h"

namespace berth::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSector = 512;
constexpr uint64_t kMiB = uint64_t{1} << 20;

class Qcow2ResizeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(2);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }

  std::string Path(const std::string& name) const { return directory_.Path(name); }

  void Create(const std::string& name, const std::string& options, uint64_t size) {
    RunToSuccess(
        {"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, Path(name), std::to_string(size)});
  }

  absl::StatusOr<std::shared_ptr<BlockDevice>> OpenFile(const std::string& name) {
    return OpenImage({.format = ImageFormat::kQcow2, .path = Path(name)}, ImageRoots::Anywhere());
  }

  void ExpectClean(const std::string& name) {
    const ProgramResult check = RunProgram({"qemu-img", "check", "-f", "qcow2", Path(name)});
    EXPECT_EQ(check.exit_code, 0) << check.output << check.errors;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<ReactorPool> pool_;
};

// What each sector may contain after a cut, and which sizes the disk may have.
struct Sector {
  std::vector<std::vector<uint8_t>> versions = {std::vector<uint8_t>(kSector)};
  bool anything = false;
};
struct State {
  size_t moment;
  std::vector<uint64_t> sizes;
  std::vector<Sector> sectors;
};

TEST_F(Qcow2ResizeTest, APowerCutLeavesOneOfTheTwoSizes) {
  const char* chosen = getenv("BERTH_CONFORMANCE_SEED");
  const uint64_t seed = chosen == nullptr ? 1 : strtoull(chosen, nullptr, 10);
  for (const std::string options : {"cluster_size=512", "compat=0.10,cluster_size=1k",
                                    "cluster_size=4k,refcount_bits=1", "cluster_size=16k,extended_l2=on"}) {
    SCOPED_TRACE(absl::StrCat(options, ", BERTH_CONFORMANCE_SEED=", seed));
    std::mt19937_64 random(seed);
    Create("new", options, 128 * 1024);
    const std::string bytes = ReadFile(Path("new"));
    const std::vector<uint8_t> initial(bytes.begin(), bytes.end());
    std::shared_ptr<BlockDevice> memory = *MemoryDevice::Create(initial.size());
    ASSERT_TRUE(BlockingChannel(*memory, pool_->at(0)).Write(0, initial).ok());
    auto cut = std::make_shared<PowerCutDevice>(memory, initial);
    std::vector<std::pair<size_t, size_t>> resizes;  // From which moment to which.
    std::vector<State> states = {{0, {128 * 1024}, std::vector<Sector>(256)}};
    {
      const auto header = ReadQcow2Header(*cut);
      ASSERT_TRUE(header.ok()) << header.status();
      Qcow2Options writable;
      writable.writable = true;
      auto device = Qcow2Device::Open({cut, nullptr, nullptr}, *header, writable);
      ASSERT_TRUE(device.ok()) << device.status();
      BlockingChannel channel(**device, pool_->at(0));
      for (int step = 0; step < 70; ++step) {
        State now = states.back();
        now.moment = cut->moments();
        const size_t sectors = now.sectors.size();
        if (step % 5 == 4) {
          const uint64_t size = (1 + random() % 16) * (random() % 2 == 0 ? kSector : 33 * 1024);
          const uint64_t before = sectors * kSector;
          now.sizes = {before, size};
          for (size_t i = size / kSector; i < sectors; ++i) now.sectors[i].anything = true;
          now.sectors.resize(std::max<size_t>(sectors, size / kSector));
          states.push_back(now);
          const absl::Status status = (*device)->Resize(size);
          ASSERT_TRUE(status.ok()) << status;
          resizes.emplace_back(now.moment, cut->moments());
          now.moment = cut->moments();
          now.sizes = {size};
          now.sectors.resize(size / kSector);
          // A resize makes what was written before durable.
          for (Sector& sector : now.sectors) sector.versions = {sector.versions.back()};
          states.push_back(now);
          continue;
        }
        const uint64_t count = 1 + random() % std::min<uint64_t>(sectors, 16);
        const uint64_t first = random() % (sectors - count + 1);
        const bool zero = random() % 4 == 0;
        std::vector<uint8_t> data = PatternBytes(first * kSector, count * kSector, step + 1);
        if (zero) std::fill(data.begin(), data.end(), 0);
        for (uint64_t i = 0; i < count; ++i) {
          const auto begin = data.begin() + static_cast<ptrdiff_t>(i * kSector);
          now.sectors[first + i].versions.emplace_back(begin, begin + kSector);
        }
        states.push_back(now);
        ASSERT_TRUE(
            (zero ? channel.Zero(first * kSector, count * kSector) : channel.Write(first * kSector, data))
                .ok());
      }
    }
    const size_t moments = cut->moments();
    for (int trial = 0; trial < 40; ++trial) {
      size_t moment = trial == 0 ? moments : random() % (moments + 1);
      if (trial % 3 != 0) {
        const auto& [begin, end] = resizes[random() % resizes.size()];
        moment = begin + random() % (end - begin + 1);
      }
      SCOPED_TRACE(absl::StrCat("cut at ", moment, " of ", moments));
      const std::vector<uint8_t> disk = cut->DiskAfterCut(moment, random);
      WriteFile(Path("cut"), std::string(disk.begin(), disk.end()));
      // 3 are leaks, which a cut may leave.
      const ProgramResult check = RunProgram({"qemu-img", "check", "-f", "qcow2", Path("cut")});
      ASSERT_TRUE(check.exit_code == 0 || (check.exit_code == 3 && trial != 0))
          << check.output << check.errors;
      // The latest that can be there is the last that had begun.
      const State* expected = nullptr;
      for (const State& state : states) {
        if (state.moment <= moment) expected = &state;
      }
      ASSERT_NE(expected, nullptr);
      auto device = OpenFile("cut");
      ASSERT_TRUE(device.ok()) << device.status();
      ASSERT_THAT(expected->sizes, ::testing::Contains((*device)->size()));
      const std::vector<uint8_t> content = BlockingChannel(**device, pool_->at(0)).Read(0, (*device)->size());
      for (size_t i = 0; i < content.size() / kSector; ++i) {
        const Sector& sector = expected->sectors[i];
        if (sector.anything) continue;
        const auto begin = content.begin() + static_cast<ptrdiff_t>(i * kSector);
        const std::vector<uint8_t> found(begin, begin + kSector);
        ASSERT_TRUE(std::find(sector.versions.begin(), sector.versions.end(), found) != sector.versions.end())
            << "sector " << i << " has " << int{found[0]};
      }
      // What is there can go on to live: it gets another size and is clean after that, but for the leaks.
      ASSERT_TRUE((*device)->Resize(300 * 1024).ok());
    }
  }
}

// An overlay that grows beyond its backing file's end, and one that grows inside of it.
TEST_F(Qcow2ResizeTest, TheBackingFileDoesNotShineThrough) {
  WriteFile(Path("base"), std::string(3 * kMiB, 'b'));
  for (const std::string options :
       {"compat=1.1", "compat=0.10,cluster_size=4k", "extended_l2=on", "cluster_size=512"}) {
    SCOPED_TRACE(options);
    std::filesystem::remove(Path("top"));
    RunToSuccess({"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", Path("base"), "-F", "raw",
                  Path("top"), std::to_string(kMiB + 3 * kSector)});
    ReferenceModel model(kMiB + 3 * kSector);
    model.Write(0, std::vector<uint8_t>(kMiB + 3 * kSector, 'b'));
    {
      auto device = OpenFile("top");
      ASSERT_TRUE(device.ok()) << device.status();
      BlockingChannel channel(**device, pool_->at(0));
      for (const uint64_t size :
           {kMiB + 9 * kSector, 2 * kMiB, kMiB / 2 + kSector, 5 * kMiB, kMiB, 3 * kMiB - kSector}) {
        ASSERT_TRUE((*device)->Resize(size).ok());
        model.Resize(size);
        ASSERT_TRUE(model.Agrees(0, channel.Read(0, size))) << size;
      }
    }
    ExpectClean("top");
    RunToSuccess({"qemu-img", "convert", "-f", "qcow2", "-O", "raw", Path("top"), Path("raw")});
    const std::string raw = ReadFile(Path("raw"));
    ASSERT_TRUE(
        model.Agrees(0, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(raw.data()), raw.size())));
  }
}

TEST_F(Qcow2ResizeTest, AShrunkImageGivesItsSpaceBack) {
  Create("image", "cluster_size=4k", 64 * kMiB);
  {
    auto device = OpenFile("image");
    ASSERT_TRUE(device.ok()) << device.status();
    BlockingChannel channel(**device, pool_->at(0));
    for (uint64_t at = 0; at < 64 * kMiB; at += kMiB) {
      ASSERT_TRUE(channel.Write(at, PatternBytes(at, kMiB, 1)).ok());
    }
    ASSERT_TRUE((*device)->Resize(kMiB).ok());
    // At once, and when it is closed.
    EXPECT_LT(std::filesystem::file_size(Path("image")), 3 * kMiB);
    ASSERT_TRUE(channel.Write(0, PatternBytes(0, kMiB, 2)).ok());
    EXPECT_TRUE(channel.Read(0, kMiB) == PatternBytes(0, kMiB, 2));
  }
  EXPECT_LT(std::filesystem::file_size(Path("image")), 3 * kMiB);
  ExpectClean("image");
}

TEST_F(Qcow2ResizeTest, SnapshotsKeepWhatTheDiskLoses) {
  Create("image", "cluster_size=4k", 4 * kMiB);
  RunToSuccess({"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4M", Path("image")});
  RunToSuccess({"qemu-img", "snapshot", "-c", "s", Path("image")});
  {
    auto device = OpenFile("image");
    ASSERT_TRUE(device.ok()) << device.status();
    ASSERT_TRUE((*device)->Resize(kMiB + kSector).ok());
    ASSERT_TRUE((*device)->Resize(40 * kMiB).ok());
    BlockingChannel channel(**device, pool_->at(0));
    EXPECT_EQ(channel.Read(0, kMiB + kSector), std::vector<uint8_t>(kMiB + kSector, 7));
    EXPECT_EQ(channel.Read(kMiB + kSector, 3 * kMiB), std::vector<uint8_t>(3 * kMiB));
  }
  ExpectClean("image");
  RunToSuccess({"qemu-img", "snapshot", "-a", "s", Path("image")});
  ExpectClean("image");
  EXPECT_THAT(RunToSuccess({"qemu-io", "-f", "qcow2", "-c", "read -P 7 0 4M", Path("image")}),
              ::testing::Not(HasSubstr("failed")));
  // Version 2 does not say how large the disk of a snapshot was.
  Create("old", "compat=0.10", 4 * kMiB);
  RunToSuccess({"qemu-img", "snapshot", "-c", "s", Path("old")});
  auto device = OpenFile("old");
  ASSERT_TRUE(device.ok()) << device.status();
  for (const uint64_t size : {kMiB, 8 * kMiB}) {
    const absl::Status status = (*device)->Resize(size);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("snapshots"));
  }
}

TEST_F(Qcow2ResizeTest, DirtyBitmapsStandInTheWay) {
  Create("image", "compat=1.1", 4 * kMiB);
  RunToSuccess({"qemu-img", "bitmap", "--add", Path("image"), "b"});
  {
    auto device = OpenFile("image");
    ASSERT_TRUE(device.ok()) << device.status();
    const absl::Status status = (*device)->Resize(8 * kMiB);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("bitmaps"));
  }
  RunToSuccess({"qemu-img", "bitmap", "--remove", Path("image"), "b"});
  auto device = OpenFile("image");
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_TRUE((*device)->Resize(8 * kMiB).ok());
}

TEST_F(Qcow2ResizeTest, DataFilesFollow) {
  for (const std::string raw : {"off", "on"}) {
    SCOPED_TRACE(raw);
    Create("image", absl::StrCat("data_file=", Path("data"), ",data_file_raw=", raw), 2 * kMiB);
    std::vector<uint8_t> expected = PatternBytes(0, 2 * kMiB, 4);
    {
      auto device = OpenFile("image");
      ASSERT_TRUE(device.ok()) << device.status();
      BlockingChannel channel(**device, pool_->at(0));
      ASSERT_TRUE(channel.Write(0, expected).ok());
      for (const uint64_t size : {kMiB + kSector, 3 * kMiB}) {
        ASSERT_TRUE((*device)->Resize(size).ok());
        expected.resize(size);
        ASSERT_TRUE(channel.Read(0, size) == expected);
        EXPECT_EQ(std::filesystem::file_size(Path("data")), size);
      }
    }
    ExpectClean("image");
    if (raw == "on") {
      EXPECT_TRUE(ReadFile(Path("data")) == std::string(expected.begin(), expected.end()));
    }
    std::filesystem::remove(Path("image"));
    std::filesystem::remove(Path("data"));
  }
}

// Writers on two reactors, one of them inside the part that always stays, while the disk gets other sizes.
TEST_F(Qcow2ResizeTest, UnderLoadNothingIsLost) {
  Create("image", "cluster_size=1k", 2 * kMiB);
  constexpr uint64_t kKept = 96 * 1024;
  {
    auto opened = OpenFile("image");
    ASSERT_TRUE(opened.ok()) << opened.status();
    BlockDevice& device = **opened;
    std::atomic<bool> stop = false;
    std::vector<std::thread> writers;
    for (size_t reactor = 0; reactor < 2; ++reactor) {
      writers.emplace_back([&, reactor] {
        BlockingChannel channel(device, pool_->at(reactor));
        std::mt19937_64 random(reactor);
        for (uint64_t i = 1; !stop; ++i) {
          if (reactor == 0) {
            // Whole and checked.
            const std::vector<uint8_t> data = PatternBytes(0, kKept, i);
            EXPECT_TRUE(channel.Write(0, data).ok());
            EXPECT_TRUE(channel.Read(0, kKept) == data);
            continue;
          }
          const uint64_t offset = kKept + random() % (3 * kMiB);
          // Behind the end: an error, nothing else.
          (void)(random() % 2 == 0 ? channel.Write(offset, PatternBytes(offset, 9000, i))
                                   : channel.Zero(offset, 9000))
              .ok();
        }
      });
    }
    std::mt19937_64 random(9);
    for (int i = 0; i < 40; ++i) {
      const absl::Status status = device.Resize(kKept + (random() % 4096) * 1024 / 2);
      EXPECT_TRUE(status.ok()) << status;
    }
    // New space is empty, whoever wrote there while it was not there.
    stop = true;
    for (std::thread& writer : writers) writer.join();
    ASSERT_TRUE(device.Resize(kKept).ok());
    ASSERT_TRUE(device.Resize(3 * kMiB).ok());
    BlockingChannel channel(device, pool_->at(0));
    EXPECT_TRUE(channel.Read(kKept, 3 * kMiB - kKept) == std::vector<uint8_t>(3 * kMiB - kKept));
  }
  ExpectClean("image");
}

TEST_F(Qcow2ResizeTest, OfAClosedImage) {
  Create("image", "compat=1.1", 2 * kMiB);
  const ImageRoots roots = ImageRoots::Anywhere();
  EXPECT_EQ(ResizeQcow2Image(roots, Path("image"), kMiB, false, std::nullopt).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ResizeQcow2Image(roots, Path("image"), kMiB + 1, true, std::nullopt).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto small = ResizeQcow2Image(roots, Path("image"), kMiB, true, std::nullopt);
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(small->size, kMiB);
  // Up to the largest L1 table, and back.
  for (const uint64_t size : {uint64_t{1} << 40, uint64_t{1} << 51}) {
    const auto large = ResizeQcow2Image(roots, Path("image"), size, false, std::nullopt);
    ASSERT_TRUE(large.ok()) << large.status();
  }
  ASSERT_TRUE(ResizeQcow2Image(roots, Path("image"), kMiB, true, std::nullopt).ok());
  ExpectClean("image");
  const absl::Status most =
      ResizeQcow2Image(roots, Path("image"), uint64_t{1} << 52, false, std::nullopt).status();
  EXPECT_EQ(most.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(most.message()), HasSubstr(absl::StrCat(uint64_t{1} << 51)));
  const auto held = OpenFile("image");
  ASSERT_TRUE(held.ok());
  EXPECT_FALSE(ResizeQcow2Image(roots, Path("image"), 2 * kMiB, true, std::nullopt).ok());
}

}  // namespace
}  // namespace berth::testing
