// Images that qemu-img and qemu-io made with every option they have, read by us: the content and the map are
// those that qemu sees.
#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/opener/opener.h"
#include "nlohmann/json.hpp"
#include "tests/conformance/blocking_channel.h"
#include "tests/interop/program.h"
#include "tests/interop/statuses.h"
#include "tests/interop/temporary_directory.h"

namespace berth::testing {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kSize = 9 * kMiB + 1536;
constexpr uint64_t kSector = 512;

struct Variant {
  std::string name;
  std::string options;
  uint64_t cluster_size;
  bool can_compress = true;
  // qemu looks into the file below for holes in such images, we do not.
  bool map_has_holes_in_data = false;
};

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

std::vector<Variant> Variants() {
  std::vector<Variant> variants;
  for (uint64_t cluster_size = 512; cluster_size <= 2 * kMiB; cluster_size *= 2) {
    variants.push_back({absl::StrCat("Cluster", cluster_size), "compat=1.1", cluster_size});
  }
  for (const int bits : {1, 2, 4, 8, 32, 64}) {
    variants.push_back({absl::StrCat("Refcount", bits), absl::StrCat("refcount_bits=", bits), 4096});
  }
  for (const uint64_t cluster_size : {uint64_t{16} << 10, uint64_t{64} << 10, 2 * kMiB}) {
    variants.push_back({absl::StrCat("Subclusters", cluster_size), "extended_l2=on", cluster_size});
  }
  const uint64_t usual = 65'536;
  variants.push_back({"Version2", "compat=0.10", usual});
  variants.push_back({"Version2SmallClusters", "compat=0.10", 1024});
  variants.push_back({"LazyRefcounts", "lazy_refcounts=on", usual});
  variants.push_back({"Zstd", "compression_type=zstd", usual});
  variants.push_back({"ZstdSmallClusters", "compression_type=zstd", 4096});
  variants.push_back({"ZstdSubclusters", "compression_type=zstd,extended_l2=on", usual});
  variants.push_back({"DataFile", "data_file=DIRECTORY/data", usual, false});
  variants.push_back({"DataFileSubclusters", "data_file=DIRECTORY/data,extended_l2=on", usual, false});
  variants.push_back({"RawDataFile", "data_file=DIRECTORY/data,data_file_raw=on", usual, false, true});
  variants.push_back({"Preallocated", "preallocation=metadata", usual, false, true});
  variants.push_back({"PreallocatedFull", "preallocation=full", usual, false, true});
  return variants;
}

// qemu-io's commands for a random program over a disk of `size` bytes.
std::vector<std::string> RandomProgram(const Variant& variant, uint64_t size, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<std::string> commands;
  // qemu compresses no cluster that is there already.
  std::set<uint64_t> touched;
  for (int i = 0; i < 60; ++i) {
    uint64_t unit = random() % 3 == 0 ? variant.cluster_size : kSector;
    uint64_t offset = random() % size / unit * unit;
    const uint64_t longest = std::min(size - offset, std::max<uint64_t>(4 * variant.cluster_size, 65'536));
    uint64_t length = std::max(kSector, random() % longest / unit * unit);
    std::string verb = absl::StrCat("write -P ", 1 + random() % 255);
    switch (random() % 8) {
      case 0:
        verb = "write -z";
        break;
      case 1:
        verb = "write -z -u";
        break;
      case 2:
        verb = "discard";
        break;
      case 3:
      case 4:
        if (!variant.can_compress || touched.count(offset / variant.cluster_size) != 0) break;
        verb += " -c";
        offset = offset / variant.cluster_size * variant.cluster_size;
        length = std::min(variant.cluster_size, size - offset);
        break;
      default:
        break;
    }
    for (uint64_t at = offset / variant.cluster_size; at * variant.cluster_size < offset + length; ++at) {
      touched.insert(at);
    }
    commands.push_back(absl::StrCat(verb, " ", offset, " ", length));
  }
  return commands;
}

class Qcow2ReadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pool = ReactorPool::Create(1);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }

  std::string Path(const std::string& name) const { return directory_.Path(name); }

  // Makes an image; `backing` is empty, or "FORMAT:NAME".
  void Create(const std::string& name, const Variant& variant, uint64_t size,
              const std::string& backing = "") {
    std::string options = absl::StrCat(variant.options, ",cluster_size=", variant.cluster_size);
    if (const size_t at = options.find("DIRECTORY"); at != std::string::npos) {
      options.replace(at, 9, directory_.path());
    }
    std::vector<std::string> arguments = {"qemu-img", "create", "-q", "-f", "qcow2", "-o", options};
    if (const size_t colon = backing.find(':'); colon != std::string::npos) {
      arguments.insert(arguments.end(), {"-F", backing.substr(0, colon), "-b", backing.substr(colon + 1)});
    }
    arguments.insert(arguments.end(), {Path(name), std::to_string(size)});
    RunToSuccess(arguments);
  }

  // Some compressed writes qemu refuses, with exit status 1: what counts is what it then reads.
  void Change(const std::string& name, const std::vector<std::string>& commands) {
    std::vector<std::string> arguments = {"qemu-io", "-f", "qcow2", "-t", "unsafe"};
    for (const std::string& command : commands) arguments.insert(arguments.end(), {"-c", command});
    arguments.push_back(Path(name));
    const ProgramResult result = RunProgram(arguments);
    EXPECT_LE(result.exit_code, 1) << result.errors;
    EXPECT_EQ(result.errors, "");
  }

  std::shared_ptr<BlockDevice> Open(const std::string& name, const std::string& snapshot = "") {
    auto device = OpenImage(
        {.format = ImageFormat::kQcow2, .path = Path(name), .read_only = true, .snapshot = snapshot},
        ImageRoots::Anywhere());
    EXPECT_TRUE(device.ok()) << device.status();
    return device.ok() ? *std::move(device) : nullptr;
  }

  std::string QemusContent(const std::string& name) {
    RunToSuccess(
        {"qemu-img", "convert", "-t", "unsafe", "-f", "qcow2", "-O", "raw", Path(name), Path("qemu.raw")});
    return ReadFile(Path("qemu.raw"));
  }

  // At once, and in pieces of many sizes.
  void ExpectContent(BlockDevice& device, const std::string& expected) {
    ASSERT_EQ(device.size(), expected.size());
    BlockingChannel channel(device, pool_->at(0));
    const std::vector<uint8_t> whole = channel.Read(0, expected.size());
    ASSERT_EQ(whole.size(), expected.size());
    const auto differs = std::mismatch(whole.begin(), whole.end(), expected.begin(),
                                       [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); });
    ASSERT_TRUE(differs.first == whole.end()) << "byte " << differs.first - whole.begin();
    std::mt19937_64 random(1);
    for (int i = 0; i < 200; ++i) {
      const uint64_t length = 1 + random() % (i % 4 == 0 ? 300'000 : 5000);
      const uint64_t offset = random() % (expected.size() - length);
      const std::vector<uint8_t> part = channel.Read(offset, length);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<ptrdiff_t>(offset)))
          << offset << "+" << length;
    }
  }

  std::vector<Extent> Extents(BlockDevice& device) {
    BlockingChannel channel(device, pool_->at(0));
    std::vector<Extent> extents;
    for (uint64_t at = 0; at < device.size();) {
      std::vector<Extent> some;
      EXPECT_TRUE(channel.Extents(at, device.size() - at, &some).ok());
      if (some.empty()) break;
      for (const Extent& extent : some) {
        at += extent.length;
        AppendExtent(extent, &extents);
      }
    }
    return extents;
  }

  // Sector by sector: zero where qemu says so, and with a place in the file where qemu says so.
  void ExpectMap(BlockDevice& device, const std::string& name, bool has_backing) {
    std::vector<Extent> sectors;
    for (const Extent& extent : Extents(device)) {
      EXPECT_EQ(extent.length % kSector, 0u);
      sectors.insert(sectors.end(), extent.length / kSector, {kSector, extent.allocated, extent.zero});
    }
    ASSERT_EQ(Statuses(device, pool_->at(0), "qemu:allocation-depth"),
              QemusStatuses(Path(name), "qemu:allocation-depth", {"-A"}));
    for (const json& entry :
         json::parse(RunToSuccess({"qemu-img", "map", "-f", "qcow2", "--output=json", Path(name)}))) {
      const uint64_t begin = entry["start"].get<uint64_t>() / kSector;
      const uint64_t end = begin + entry["length"].get<uint64_t>() / kSector;
      const bool zero = entry["zero"];
      const bool has_space = entry["data"] || entry.contains("offset");
      ASSERT_LE(end, sectors.size());
      for (uint64_t i = begin; i < end; ++i) {
        ASSERT_EQ(sectors[i].zero, zero) << "sector " << i << " " << entry;
        if (has_backing) continue;
        ASSERT_EQ(sectors[i].allocated, has_space) << "sector " << i << " " << entry;
      }
    }
  }

  TemporaryDirectory directory_;
  std::unique_ptr<ReactorPool> pool_;
};

class Qcow2VariantTest : public Qcow2ReadTest, public ::testing::WithParamInterface<Variant> {};

TEST_P(Qcow2VariantTest, AloneReadsAsInQemu) {
  Create("image", GetParam(), kSize);
  Change("image", RandomProgram(GetParam(), kSize, 1));
  const std::shared_ptr<BlockDevice> device = Open("image");
  ASSERT_NE(device, nullptr);
  ExpectContent(*device, QemusContent("image"));
  if (!GetParam().map_has_holes_in_data) ExpectMap(*device, "image", false);
}

TEST_P(Qcow2VariantTest, OverALongerAndAShorterBackingFileReadsAsInQemu) {
  const Variant& variant = GetParam();
  // qemu-img makes no such overlay: all of it would be allocated.
  if (variant.name == "RawDataFile" || variant.name.rfind("Preallocated", 0) == 0) return;
  const Variant base = {"", "compat=1.1", 65'536};
  for (const uint64_t base_size : {kSize + 5 * kSector, 5 * kMiB + kSector}) {
    Create("base", base, base_size);
    Change("base", RandomProgram(base, base_size, 2));
    Create("image", variant, kSize, absl::StrCat("qcow2:", "base"));
    Change("image", RandomProgram(variant, kSize, 3));
    const std::shared_ptr<BlockDevice> device = Open("image");
    ASSERT_NE(device, nullptr);
    ExpectContent(*device, QemusContent("image"));
    ExpectMap(*device, "image", true);
  }
}

INSTANTIATE_TEST_SUITE_P(Qcow2, Qcow2VariantTest, ::testing::ValuesIn(Variants()),
                         [](const auto& info) { return info.param.name; });

TEST_F(Qcow2ReadTest, AChainOfManyLayersOverARawFile) {
  WriteFile(Path("base.raw"), RandomBytes(4 * kMiB + 512, 7));
  std::string below = "raw:base.raw";
  const uint64_t cluster_sizes[] = {65'536, 512, 4096, 2 * kMiB, 16'384};
  for (int i = 0; i < 20; ++i) {
    const Variant variant = {"", i % 5 == 4 ? "extended_l2=on" : "compat=1.1", cluster_sizes[i % 5]};
    const std::string name = absl::StrCat("layer", i);
    const uint64_t size = kSize - static_cast<uint64_t>(i % 3) * kMiB;
    Create(name, variant, size, below);
    std::vector<std::string> program = RandomProgram(variant, size, 100 + i);
    program.resize(8);
    Change(name, program);
    below = "qcow2:" + name;
  }
  const std::shared_ptr<BlockDevice> device = Open("layer19");
  ASSERT_NE(device, nullptr);
  ExpectContent(*device, QemusContent("layer19"));
  ExpectMap(*device, "layer19", true);
}

TEST_F(Qcow2ReadTest, InternalSnapshots) {
  const Variant variant = {"", "compat=1.1", 4096};
  Create("image", variant, kSize);
  std::vector<std::string> contents;
  for (const std::string snapshot : {"one", "two", "3"}) {
    Change("image", RandomProgram(variant, kSize, static_cast<unsigned>(contents.size())));
    RunToSuccess({"qemu-img", "snapshot", "-c", snapshot, Path("image")});
    contents.push_back(QemusContent("image"));
  }
  RunToSuccess({"qemu-img", "resize", "-q", "-f", "qcow2", Path("image"), std::to_string(kSize + kMiB)});
  Change("image", RandomProgram(variant, kSize, 9));
  ExpectContent(*Open("image"), QemusContent("image"));
  ExpectContent(*Open("image", "one"), contents[0]);
  ExpectContent(*Open("image", "2"), contents[1]);
  ExpectContent(*Open("image", "3"), contents[2]);
  const absl::Status status =
      OpenImage({.format = ImageFormat::kQcow2, .path = Path("image"), .read_only = true, .snapshot = "four"},
                ImageRoots::Anywhere())
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("1 (\"one\"), 2 (\"two\"), 3 (\"3\")"));
}

TEST_F(Qcow2ReadTest, LocksAreThoseOfQemu) {
  Create("base", {"", "compat=1.1", 65'536}, kSize);
  Create("image", {"", "compat=1.1", 65'536}, kSize, "qcow2:base");
  {
    const std::shared_ptr<BlockDevice> device = Open("image");
    ASSERT_NE(device, nullptr);
    for (const char* name : {"image", "base"}) {
      const ProgramResult write = RunProgram({"qemu-io", "-f", "qcow2", "-c", "write 0 512", Path(name)});
      EXPECT_NE(write.exit_code, 0) << name;
      EXPECT_THAT(write.errors, HasSubstr("lock")) << name;
    }
    RunToSuccess({"qemu-img", "info", Path("image")});
    EXPECT_NE(Open("image"), nullptr);  // Readers share.
  }
  RunToSuccess({"qemu-io", "-f", "qcow2", "-c", "write 0 512", Path("image")});
}

TEST_F(Qcow2ReadTest, EncryptedImagesNeedTheirSecret) {
  for (const std::string format : {"luks", "aes"}) {
    RunToSuccess({"qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=12345678", "-o",
                  absl::StrCat("encrypt.format=", format, ",encrypt.key-secret=s",
                               format == "luks" ? ",encrypt.iter-time=10" : ""),
                  Path("image"), "1M"});
    const absl::Status status =
        OpenImage({.format = ImageFormat::kQcow2, .path = Path("image"), .read_only = true},
                  ImageRoots::Anywhere())
            .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << format;
    EXPECT_THAT(std::string(status.message()), HasSubstr("is encrypted"));
  }
}

}  // namespace
}  // namespace berth::testing
