// Writing qcow2 images: qemu-img check finds nothing after it, qemu reads what was written, and a power cut
// at any moment leaves an image without corruption that has everything that was flushed.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/memory/memory_device.h"
#include "image/qcow2/qcow2_device.h"
#include "image/raw/raw_device.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/conformance/reference_model.h"
#include "tests/fakes/faulty_device.h"
#include "tests/fakes/power_cut_device.h"
#include "tests/interop/program.h"
#include "tests/interop/temporary_directory.h"

namespace berth::testing {
namespace {

constexpr uint64_t kSize = 256 * 1024 + 1536;
constexpr uint64_t kSector = 512;

class Qcow2WriteTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }

  std::string Path(const std::string& name) const { return directory_.Path(name); }

  // DIRECTORY in `options` is the test's, where an external data file is named "data".
  std::vector<uint8_t> NewImage(std::string options, const std::string& backing = "") {
    std::filesystem::remove(Path("data"));
    if (const size_t at = options.find("DIRECTORY"); at != std::string::npos) {
      options.replace(at, 9, directory_.path());
    }
    std::vector<std::string> create = {"qemu-img", "create", "-q", "-f", "qcow2", "-o", options};
    if (!backing.empty()) create.insert(create.end(), {"-F", "raw", "-b", backing});
    create.insert(create.end(), {Path("new"), std::to_string(kSize)});
    RunToSuccess(create);
    return Bytes("new");
  }

  std::vector<uint8_t> Bytes(const std::string& name) const {
    const std::string bytes = ReadFile(Path(name));
    return {bytes.begin(), bytes.end()};
  }

  bool HasDataFile() const { return std::filesystem::exists(Path("data")); }

  std::shared_ptr<BlockDevice> Disk(const std::vector<uint8_t>& content) {
    std::shared_ptr<BlockDevice> disk = *MemoryDevice::Create(content.size());
    EXPECT_TRUE(BlockingChannel(*disk, pool_->at(0)).Write(0, content).ok());
    return disk;
  }

  static absl::StatusOr<std::shared_ptr<Qcow2Device>> Open(std::shared_ptr<BlockDevice> disk, bool writable,
                                                           std::shared_ptr<BlockDevice> data = nullptr,
                                                           std::shared_ptr<BlockDevice> backing = nullptr) {
    const auto header = ReadQcow2Header(*disk);
    if (!header.ok()) return header.status();
    Qcow2Options options;
    options.writable = writable;
    return Qcow2Device::Open({std::move(disk), std::move(data), std::move(backing)}, *header, options);
  }

  TemporaryDirectory directory_;
  std::unique_ptr<ReactorPool> pool_;
};

// What each sector may contain after a cut: one of these versions, or anything.
struct Sector {
  std::vector<std::vector<uint8_t>> versions;
  bool anything = false;
  bool discarded_last = false;
};

struct Acknowledged {
  size_t moment;
  std::vector<Sector> sectors;
};

void ExpectSectors(const std::vector<Sector>& expected, const std::vector<uint8_t>& content) {
  ASSERT_GE(content.size(), expected.size() * kSector);
  for (size_t i = 0; i < expected.size(); ++i) {
    const Sector& sector = expected[i];
    if (sector.anything) continue;
    const auto begin = content.begin() + static_cast<ptrdiff_t>(i * kSector);
    const std::vector<uint8_t> found(begin, begin + kSector);
    ASSERT_TRUE(std::find(sector.versions.begin(), sector.versions.end(), found) != sector.versions.end())
        << "sector " << i << " has " << int{found[0]} << ", none of " << sector.versions.size();
  }
}

TEST_F(Qcow2WriteTest, APowerCutAtAnyMomentCorruptsNothing) {
  const char* chosen = getenv("BERTH_CONFORMANCE_SEED");
  const uint64_t seed = chosen == nullptr ? 1 : strtoull(chosen, nullptr, 10);
  for (const std::string options :
       {"cluster_size=512", "cluster_size=4k,refcount_bits=1", "compat=0.10,cluster_size=1k",
        "extended_l2=on,cluster_size=16k", "extended_l2=on,cluster_size=64k",
        "cluster_size=512,data_file=DIRECTORY/data", "extended_l2=on,data_file=DIRECTORY/data",
        "cluster_size=4k,data_file=DIRECTORY/data,data_file_raw=on"}) {
    SCOPED_TRACE(absl::StrCat(options, ", BERTH_CONFORMANCE_SEED=", seed));
    const std::vector<uint8_t> initial = NewImage(options);
    const auto clock = std::make_shared<PowerCutClock>();
    auto cut = std::make_shared<PowerCutDevice>(Disk(initial), initial, clock);
    std::shared_ptr<PowerCutDevice> data_cut;
    if (HasDataFile()) {
      // Writing may begin with less than all of it there.
      const std::vector<uint8_t> data = Bytes("data");
      data_cut = std::make_shared<PowerCutDevice>(Disk(data), data, clock);
    }
    std::mt19937_64 random(seed);
    const size_t sectors = kSize / kSector;
    std::vector<Sector> now(sectors, Sector{{std::vector<uint8_t>(kSector)}, false});
    // The state at each flush that succeeded, and the moment from which on it counts; then what came after.
    std::vector<Acknowledged> flushed = {{0, now}};
    std::vector<std::pair<size_t, std::vector<Sector>>> history;
    {
      auto device = Open(cut, true, data_cut);
      ASSERT_TRUE(device.ok()) << device.status();
      BlockingChannel channel(**device, pool_->at(0));
      for (int step = 0; step < 120; ++step) {
        const uint64_t count = 1 + random() % 24;
        const uint64_t first = random() % (sectors - count);
        const uint64_t choice = random() % 10;
        if (choice < 6) {
          const std::vector<uint8_t> data = PatternBytes(first * kSector, count * kSector, step + 1);
          for (uint64_t i = 0; i < count; ++i) {
            const auto begin = data.begin() + static_cast<ptrdiff_t>(i * kSector);
            now[first + i].versions.emplace_back(begin, begin + kSector);
            now[first + i].discarded_last = false;
          }
          history.emplace_back(cut->moments(), now);
          ASSERT_TRUE(channel.Write(first * kSector, data).ok());
        } else if (choice < 8) {
          for (uint64_t i = 0; i < count; ++i) {
            now[first + i].versions.emplace_back(kSector);
            now[first + i].discarded_last = false;
          }
          history.emplace_back(cut->moments(), now);
          ASSERT_TRUE(channel.Zero(first * kSector, count * kSector).ok());
        } else if (choice == 8) {
          for (uint64_t i = 0; i < count; ++i) now[first + i].anything = now[first + i].discarded_last = true;
          history.emplace_back(cut->moments(), now);
          ASSERT_TRUE(channel.Discard(first * kSector, count * kSector).ok());
        } else {
          ASSERT_TRUE(channel.Flush().ok());
          for (Sector& sector : now) {
            if (sector.discarded_last) continue;
            sector.anything = false;
            sector.versions.erase(sector.versions.begin(), sector.versions.end() - 1);
          }
          flushed.push_back({cut->moments(), now});
        }
      }
    }
    const size_t moments = cut->moments();
    for (int trial = 0; trial < 50; ++trial) {
      const size_t moment = trial == 0 ? moments : random() % (moments + 1);
      SCOPED_TRACE(absl::StrCat("cut at ", moment, " of ", moments));
      const std::vector<uint8_t> disk = cut->DiskAfterCut(moment, random);
      WriteFile(Path("cut"), std::string(disk.begin(), disk.end()));
      std::vector<uint8_t> data;
      if (data_cut != nullptr) {
        data = data_cut->DiskAfterCut(moment, random);
        WriteFile(Path("data"), std::string(data.begin(), data.end()));
      }
      // 3 are leaks, which a cut may leave.
      const ProgramResult check = RunProgram({"qemu-img", "check", "-f", "qcow2", Path("cut")});
      ASSERT_TRUE(check.exit_code == 0 || (check.exit_code == 3 && trial != 0))
          << check.output << check.errors;
      // The latest state that may be there is the one of the last change before the cut.
      const std::vector<Sector>* expected = nullptr;
      for (const Acknowledged& one : flushed) {
        if (one.moment <= moment) expected = &one.sectors;
      }
      size_t last_flush = 0;
      for (const Acknowledged& one : flushed) {
        if (one.moment <= moment) last_flush = one.moment;
      }
      for (const auto& [at, state] : history) {
        if (at >= last_flush && at <= moment) expected = &state;
      }
      auto device = Open(Disk(disk), false, data_cut == nullptr ? nullptr : Disk(data));
      ASSERT_TRUE(device.ok()) << device.status();
      ExpectSectors(*expected, BlockingChannel(**device, pool_->at(0)).Read(0, kSize));
      if (options.find("data_file_raw=on") != std::string::npos) ExpectSectors(*expected, data);
      if (HasFatalFailure()) return;
    }
  }
}

// A disk that fails once, at every write in turn: the image has no corruption, and either the error was told
// or nothing was lost.
TEST_F(Qcow2WriteTest, AnErrorOfTheDiskCorruptsNothing) {
  const std::vector<uint8_t> initial = NewImage("cluster_size=512,refcount_bits=64");
  for (const FaultyDevice::Operation operation : {FaultyDevice::kWrite, FaultyDevice::kFlush}) {
    for (uint64_t after = 0; after < 60; after += 3) {
      SCOPED_TRACE(absl::StrCat(operation == FaultyDevice::kWrite ? "write " : "flush ", after));
      const std::shared_ptr<BlockDevice> disk = Disk(initial);
      auto faulty = std::make_shared<FaultyDevice>(disk);
      bool told = false;
      std::vector<uint8_t> expected(kSize);
      {
        auto device = Open(faulty, true);
        ASSERT_TRUE(device.ok()) << device.status();
        faulty->Fail(operation, ENOSPC, 1, operation == FaultyDevice::kFlush ? after / 6 : after);
        BlockingChannel channel(**device, pool_->at(0));
        for (uint64_t i = 0; i < 12; ++i) {
          const std::vector<uint8_t> data = PatternBytes(i * 9000, 7000, i + 1);
          if (channel.Write(i * 9000, data).ok()) {
            std::copy(data.begin(), data.end(), expected.begin() + static_cast<ptrdiff_t>(i * 9000));
          } else {
            told = true;
          }
          if (i % 3 == 2 && !channel.Flush().ok()) told = true;
        }
        if (!channel.Flush().ok()) told = true;
      }
      std::vector<uint8_t> bytes = BlockingChannel(*disk, pool_->at(0)).Read(0, disk->size());
      WriteFile(Path("failed"), std::string(bytes.begin(), bytes.end()));
      const ProgramResult check = RunProgram({"qemu-img", "check", "-f", "qcow2", Path("failed")});
      ASSERT_TRUE(check.exit_code == 0 || (check.exit_code == 3 && told)) << check.output << check.errors;
      if (told) continue;
      auto device = Open(disk, false);
      ASSERT_TRUE(device.ok()) << device.status();
      ASSERT_TRUE(BlockingChannel(**device, pool_->at(0)).Read(0, kSize) == expected);
    }
  }
}

// qemu and we take turns at changing one image.
TEST_F(Qcow2WriteTest, WeAndQemuChangeOneImageInTurn) {
  struct Variant {
    std::string options;
    bool has_backing = false;
  };
  for (const auto& [options, has_backing] :
       std::vector<Variant>{{"cluster_size=64k"},
                            {"cluster_size=512,refcount_bits=8"},
                            {"compat=0.10,cluster_size=4k"},
                            {"cluster_size=4k", true},
                            {"extended_l2=on,cluster_size=16k"},
                            {"extended_l2=on,cluster_size=128k"},
                            {"extended_l2=on,cluster_size=32k", true},
                            {"extended_l2=on,cluster_size=2M", true},
                            {"cluster_size=512,data_file=DIRECTORY/data"},
                            {"cluster_size=1k,data_file=DIRECTORY/data", true},
                            {"extended_l2=on,data_file=DIRECTORY/data", true},
                            {"data_file=DIRECTORY/data,data_file_raw=on"}}) {
    SCOPED_TRACE(absl::StrCat(options, has_backing ? " with a backing file" : ""));
    // Shorter than the disk.
    const std::vector<uint8_t> below = PatternBytes(0, kSize - 70'000, 77);
    WriteFile(Path("base"), std::string(below.begin(), below.end()));
    NewImage(options, has_backing ? Path("base") : "");
    const bool data_is_raw = options.find("data_file_raw=on") != std::string::npos;
    std::mt19937_64 random(5);
    ReferenceModel model(kSize);
    if (has_backing) model.Write(0, below);
    for (int turn = 0; turn < 8; ++turn) {
      std::vector<std::string> qemu = {"qemu-io", "-f", "qcow2", "-t", "unsafe"};
      for (int i = 0; i < 10; ++i) {
        const uint64_t length = kSector * (1 + random() % 40);
        const uint64_t offset = random() % ((kSize - length) / kSector) * kSector;
        const auto byte = static_cast<uint8_t>(1 + random() % 255);
        const uint64_t choice = random() % 8;
        const std::string range = absl::StrCat(offset, " ", length);
        if (choice == 0) {
          qemu.insert(qemu.end(), {"-c", "discard " + range});
          model.Discard(offset, length);
        } else if (choice < 3) {
          qemu.insert(qemu.end(), {"-c", "write -z -u " + range});
          model.Zero(offset, length);
        } else {
          qemu.insert(qemu.end(), {"-c", absl::StrCat("write -P ", int{byte}, " ", range)});
          model.Write(offset, std::vector<uint8_t>(length, byte));
        }
      }
      qemu.push_back(Path("new"));
      RunToSuccess(qemu);
      // qemu makes no snapshots of images with a data file.
      if (!HasDataFile() && turn == 3) RunToSuccess({"qemu-img", "snapshot", "-c", "s", Path("new")});
      if (!HasDataFile() && turn == 6) RunToSuccess({"qemu-img", "snapshot", "-d", "s", Path("new")});
      {
        auto file = RawDevice::Open(Path("new"), {});
        ASSERT_TRUE(file.ok()) << file.status();
        std::shared_ptr<BlockDevice> data;
        if (HasDataFile()) {
          auto opened = RawDevice::Open(Path("data"), {.may_be_empty = true});
          ASSERT_TRUE(opened.ok()) << opened.status();
          data = *std::move(opened);
        }
        std::shared_ptr<BlockDevice> base;
        if (has_backing) {
          auto opened = RawDevice::Open(Path("base"), {.read_only = true});
          ASSERT_TRUE(opened.ok()) << opened.status();
          base = *std::move(opened);
        }
        auto device = Open(*std::move(file), true, std::move(data), std::move(base));
        ASSERT_TRUE(device.ok()) << device.status();
        BlockingChannel channel(**device, pool_->at(0));
        ASSERT_TRUE(model.Agrees(0, channel.Read(0, kSize)));
        for (int i = 0; i < 20; ++i) {
          const uint64_t length = 1 + random() % 20'000;
          const uint64_t offset = random() % (kSize - length);
          const uint64_t choice = random() % 8;
          if (choice == 0) {
            ASSERT_TRUE(channel.Discard(offset, length).ok());
            model.Discard(offset, length);
          } else if (choice < 3) {
            ASSERT_TRUE(channel.Zero(offset, length).ok());
            model.Zero(offset, length);
          } else {
            const std::vector<uint8_t> data = PatternBytes(offset, length, random());
            ASSERT_TRUE(channel.Write(offset, data).ok());
            model.Write(offset, data);
          }
        }
      }
      const ProgramResult check = RunProgram({"qemu-img", "check", "-f", "qcow2", Path("new")});
      ASSERT_EQ(check.exit_code, 0) << check.output << check.errors;
      RunToSuccess({"qemu-img", "convert", "-f", "qcow2", "-O", "raw", Path("new"), Path("raw")});
      ASSERT_TRUE(model.Agrees(0, Bytes("raw")));
      if (data_is_raw) {
        // qemu makes it longer, up to the end of a cluster.
        std::vector<uint8_t> data = Bytes("data");
        ASSERT_GE(data.size(), kSize);
        data.resize(kSize);
        ASSERT_TRUE(model.Agrees(0, data));
      }
    }
  }
}

// What qemu left behind with lazy refcounts is opened, and a cut while that is repaired changes nothing.
TEST_F(Qcow2WriteTest, ImagesThatWereNotClosedAreRepairedWhenTheyAreOpened) {
  std::mt19937_64 random(3);
  for (const std::string options :
       {"cluster_size=512,refcount_bits=64,lazy_refcounts=on", "cluster_size=4k,lazy_refcounts=on",
        "extended_l2=on,cluster_size=16k,lazy_refcounts=on"}) {
    SCOPED_TRACE(options);
    NewImage(options);
    const auto qemu = [this](std::vector<std::string> commands) {
      std::vector<std::string> arguments = {"qemu-io", "-f", "qcow2", "-t", "unsafe"};
      for (const std::string& command : commands) arguments.insert(arguments.end(), {"-c", command});
      arguments.push_back(Path("new"));
      RunProgram(arguments);  // The last may end by a signal.
    };
    qemu({"write -P 1 0 150000", "write -P 5 -c 196608 65536"});
    RunToSuccess({"qemu-img", "snapshot", "-c", "s", Path("new")});
    qemu({"write -P 2 10000 50000", "discard 100000 30000", "write -P 3 170000 20000", "flush", "abort"});
    ReferenceModel model(kSize);
    model.Write(0, std::vector<uint8_t>(150'000, 1));
    model.Write(196'608, std::vector<uint8_t>(65'536, 5));
    model.Write(10'000, std::vector<uint8_t>(50'000, 2));
    model.Discard(100'000, 30'000);
    model.Write(170'000, std::vector<uint8_t>(20'000, 3));
    const std::vector<uint8_t> dirty = Bytes("new");
    ASSERT_EQ(dirty[79] & 1, 1);
    ASSERT_NE(RunProgram({"qemu-img", "check", "-f", "qcow2", Path("new")}).exit_code, 0);
    auto cut = std::make_shared<PowerCutDevice>(Disk(dirty), dirty);
    {
      auto device = Open(cut, true);
      ASSERT_TRUE(device.ok()) << device.status();
    }
    const size_t moments = cut->moments();
    for (int trial = 0; trial < 12; ++trial) {
      const size_t moment = trial == 0 ? moments : random() % (moments + 1);
      SCOPED_TRACE(absl::StrCat("cut at ", moment, " of ", moments));
      const std::shared_ptr<BlockDevice> disk = Disk(cut->DiskAfterCut(moment, random));
      {
        auto device = Open(disk, true);
        ASSERT_TRUE(device.ok()) << device.status();
        BlockingChannel channel(**device, pool_->at(0));
        ASSERT_TRUE(model.Agrees(0, channel.Read(0, kSize)));
        ASSERT_TRUE(channel.Write(40'000, PatternBytes(40'000, 30'000, 9)).ok());
      }
      const std::vector<uint8_t> after = BlockingChannel(*disk, pool_->at(0)).Read(0, disk->size());
      ASSERT_EQ(after[79] & 1, 0);
      WriteFile(Path("after"), std::string(after.begin(), after.end()));
      const ProgramResult check = RunProgram({"qemu-img", "check", "-f", "qcow2", Path("after")});
      ASSERT_EQ(check.exit_code, 0) << check.output << check.errors;
      // The snapshot's data was not touched.
      RunToSuccess(
          {"qemu-img", "convert", "-f", "qcow2", "-l", "s", "-O", "raw", Path("after"), Path("raw")});
      const std::vector<uint8_t> snapshot = Bytes("raw");
      ASSERT_TRUE(
          std::all_of(snapshot.begin(), snapshot.begin() + 150'000, [](uint8_t b) { return b == 1; }));
    }
  }
}

// What is discarded goes back to the file system, is used again, and the file ends where its clusters do.
TEST_F(Qcow2WriteTest, FreedClustersGiveTheirSpaceBack) {
  NewImage("cluster_size=64k");
  const uint64_t empty = std::filesystem::file_size(Path("new"));
  const std::vector<uint8_t> data = PatternBytes(0, kSize, 3);
  for (int round = 0; round < 3; ++round) {
    auto file = RawDevice::Open(Path("new"), {});
    ASSERT_TRUE(file.ok()) << file.status();
    auto device = Open(*std::move(file), true);
    ASSERT_TRUE(device.ok()) << device.status();
    BlockingChannel channel(**device, pool_->at(0));
    ASSERT_TRUE(channel.Write(0, data).ok());
    ASSERT_TRUE(channel.Flush().ok());
    ASSERT_TRUE(channel.Discard(0, kSize).ok());
    ASSERT_TRUE(channel.Flush().ok());
  }
  // The data's clusters, an L2 table, and what the empty image has.
  EXPECT_LE(std::filesystem::file_size(Path("new")), empty + 7 * 65'536);
  struct stat info = {};
  ASSERT_EQ(stat(Path("new").c_str(), &info), 0);
  // All but the metadata: header, L1 and L2 table, refcount table and block.
  EXPECT_LE(static_cast<uint64_t>(info.st_blocks) * 512, 5 * 65'536 + 8192u);
  EXPECT_EQ(RunProgram({"qemu-img", "check", "-f", "qcow2", Path("new")}).exit_code, 0);
}

}  // namespace
}  // namespace berth::testing
