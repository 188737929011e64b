// The suite that every device has to pass, over qcow2 images that qemu-img made in many ways, for reading and
// for writing. What was written is checked by qemu-img when the device is closed.
#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "image/opener/opener.h"
#include "image/raw/raw_device.h"
#include "image/secret/secret.h"
#include "tests/conformance/block_device_conformance.h"
#include "tests/interop/program.h"
#include "tests/interop/temporary_directory.h"

namespace berth::testing {
namespace {

struct Variant {
  const char* name;
  std::string options;  // Of qemu-img convert -o.
  bool compressed = false;
  CacheMode cache = CacheMode::kWriteback;
};

// The directory lives as long as the device on its files, which goes first.
struct Fixture {
  ~Fixture() {
    if (device == nullptr || device->traits().read_only) return;
    device.reset();
    const std::string image = directory.Path("image.qcow2");
    std::vector<std::string> arguments = {"qemu-img", "check", "-f", "qcow2", image};
    if (encrypted) {
      arguments = {"qemu-img",     "check",
                   "--object",     "secret,id=s,data=secret",
                   "--image-opts", absl::StrCat("driver=qcow2,encrypt.key-secret=s,file.filename=", image)};
    }
    const ProgramResult check = RunProgram(arguments);
    EXPECT_EQ(check.exit_code, 0) << check.output << check.errors;
    if (!raw_data) return;
    // The data file alone is the disk.
    const ProgramResult compare = RunProgram({"qemu-img", "compare", "-f", "raw", "-F", "qcow2",
                                              directory.Path("data"), directory.Path("image.qcow2")});
    EXPECT_EQ(compare.exit_code, 0) << compare.output << compare.errors;
  }

  bool raw_data = false;
  bool encrypted = false;
  TemporaryDirectory directory;
  std::shared_ptr<BlockDevice> device;
};

absl::Status Run(const std::vector<std::string>& arguments) {
  const ProgramResult result = RunProgram(arguments);
  if (result.exit_code == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(arguments[0], " ", arguments[1], ": ", result.errors));
}

absl::StatusOr<std::shared_ptr<BlockDevice>> Make(uint64_t size, const Variant& variant) {
  auto fixture = std::make_shared<Fixture>();
  const std::string raw = fixture->directory.Path("content.raw");
  const std::string image = fixture->directory.Path("image.qcow2");
  absl::Status status = Run({"qemu-img", "create", "-q", "-f", "raw", raw, std::to_string(size)});
  if (!status.ok()) return status;
  {
    auto content = RawDevice::Open(raw, {});
    if (!content.ok()) return content.status();
    if (status = FillForReadOnlyTests(**content); !status.ok()) return status;
  }
  std::vector<std::string> convert = {"qemu-img", "convert", "-f", "raw",
                                      "-O",       "qcow2",   "-o", variant.options};
  if (variant.compressed) convert.push_back("-c");
  convert.insert(convert.end(), {raw, image});
  if (status = Run(convert); !status.ok()) return status;
  auto device =
      OpenImage({.format = ImageFormat::kQcow2, .path = image, .cache = variant.cache, .read_only = true},
                ImageRoots::Anywhere());
  if (!device.ok()) return device.status();
  fixture->device = *std::move(device);
  return std::shared_ptr<BlockDevice>(fixture, fixture->device.get());
}

// An image that reads as zeroes and may be written.
struct WritableVariant {
  const char* name;
  std::string options;
  bool backing = false;
  // What qemu-io does first: "data" or "compressed" zeroes everywhere.
  std::string begins_with = {};
  bool snapshot = false;
  CacheMode cache = CacheMode::kWriteback;
  DiscardMode discard = DiscardMode::kUnmap;
};

absl::Status WriteZeroes(const std::string& image, uint64_t size, bool compressed) {
  constexpr uint64_t kCluster = 65'536;
  std::vector<std::string> arguments = {"qemu-io", "-f", "qcow2", "-t", "unsafe"};
  for (uint64_t at = 0; at < size; at += kCluster) {
    arguments.insert(arguments.end(), {"-c", absl::StrCat("write -P 0 ", compressed ? "-c " : "", at, " ",
                                                          std::min(kCluster, size - at))});
  }
  arguments.push_back(image);
  return Run(arguments);
}

absl::StatusOr<std::shared_ptr<BlockDevice>> MakeWritable(uint64_t size, const WritableVariant& variant) {
  auto fixture = std::make_shared<Fixture>();
  const std::string image = fixture->directory.Path("image.qcow2");
  std::string options = variant.options;
  if (const size_t at = options.find("DIRECTORY"); at != std::string::npos) {
    options.replace(at, 9, fixture->directory.path());
  }
  std::vector<std::string> create = {"qemu-img", "create", "-q", "-f", "qcow2", "-o", options};
  absl::Status status;
  if (variant.backing) {
    const std::string base = fixture->directory.Path("base.raw");
    status = Run({"qemu-img", "create", "-q", "-f", "raw", base, std::to_string(size)});
    create.insert(create.end(), {"-F", "raw", "-b", base});
  }
  create.insert(create.end(), {image, std::to_string(size)});
  if (status.ok()) status = Run(create);
  if (status.ok() && !variant.begins_with.empty()) {
    status = WriteZeroes(image, size, variant.begins_with == "compressed");
  }
  if (status.ok() && variant.snapshot) status = Run({"qemu-img", "snapshot", "-c", "s", image});
  if (!status.ok()) return status;
  auto device = OpenImage(
      {.format = ImageFormat::kQcow2, .path = image, .cache = variant.cache, .discard = variant.discard},
      ImageRoots::Anywhere());
  if (!device.ok()) return device.status();
  fixture->device = *std::move(device);
  fixture->raw_data = variant.options.find("data_file_raw=on") != std::string::npos;
  return std::shared_ptr<BlockDevice>(fixture, fixture->device.get());
}

// With LUKS. qemu takes two seconds to make such an image, so that it makes one, for all tests.
absl::StatusOr<std::shared_ptr<BlockDevice>> MakeEncrypted(uint64_t size) {
  static const TemporaryDirectory& first = *new TemporaryDirectory;
  const std::string made = first.Path(std::to_string(size));
  if (!std::filesystem::exists(made)) {
    absl::Status status =
        Run({"qemu-img", "create", "-q", "--object", "secret,id=s,data=secret", "-f", "qcow2", "-o",
             "cluster_size=16k,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", made,
             std::to_string(size)});
    if (!status.ok()) return status;
  }
  auto fixture = std::make_shared<Fixture>();
  fixture->encrypted = true;
  const std::string image = fixture->directory.Path("image.qcow2");
  std::filesystem::copy_file(made, image);
  auto device =
      OpenImage({.format = ImageFormat::kQcow2, .path = image, .secret = *Secret::FromBytes("secret")},
                ImageRoots::Anywhere());
  if (!device.ok()) return device.status();
  fixture->device = *std::move(device);
  return std::shared_ptr<BlockDevice>(fixture, fixture->device.get());
}

std::vector<ConformanceCase> WritableCases() {
  std::vector<ConformanceCase> cases;
  for (const WritableVariant& variant : std::vector<WritableVariant>{
           {.name = "Default", .options = "compat=1.1"},
           {.name = "Version2", .options = "compat=0.10"},
           {.name = "Version2Overlay", .options = "compat=0.10", .backing = true},
           {.name = "Overlay", .options = "cluster_size=16k", .backing = true},
           {.name = "SmallestClusters", .options = "cluster_size=512"},
           // The refcount table has to grow.
           {.name = "WidestRefcounts", .options = "cluster_size=512,refcount_bits=64"},
           {.name = "NarrowestRefcounts", .options = "cluster_size=4k,refcount_bits=1"},
           {.name = "LargestClusters", .options = "cluster_size=2M"},
           {.name = "LazyRefcounts", .options = "lazy_refcounts=on"},
           {.name = "Preallocated", .options = "preallocation=metadata"},
           {.name = "OverCompressed", .options = "compat=1.1", .begins_with = "compressed"},
           {.name = "BesideASnapshot", .options = "compat=1.1", .begins_with = "data", .snapshot = true},
           {.name = "Subclusters", .options = "extended_l2=on"},
           {.name = "LargestSubclusters", .options = "extended_l2=on,cluster_size=2M"},
           {.name = "SubclustersOverlay", .options = "extended_l2=on,cluster_size=16k", .backing = true},
           {.name = "SubclustersOverCompressed", .options = "extended_l2=on", .begins_with = "compressed"},
           {.name = "SubclustersBesideASnapshot",
           .options = "extended_l2=on",
           .begins_with = "data",
           .snapshot = true},
           {.name = "SubclustersPreallocated", .options = "extended_l2=on,preallocation=metadata"},
           {.name = "DataFileOverlay", .options = "data_file=DIRECTORY/data", .backing = true},
           {.name = "DataFileSubclusters", .options = "extended_l2=on,data_file=DIRECTORY/data"},
           {.name = "RawDataFile", .options = "data_file=DIRECTORY/data,data_file_raw=on"},
           {.name = "Direct", .options = "cluster_size=4k", .cache = CacheMode::kNone},
           {.name = "Writethrough", .options = "compat=1.1", .cache = CacheMode::kWritethrough},
           {.name = "NoDiscard", .options = "compat=1.1", .discard = DiscardMode::kIgnore},
       }) {
    ConformanceCase one;
    one.name = variant.name;
    one.make = [variant](uint64_t size) { return MakeWritable(size, variant); };
    cases.push_back(one);
  }
  return cases;
}

std::vector<ConformanceCase> Cases() {
  std::vector<ConformanceCase> cases;
  for (const Variant& variant : std::vector<Variant>{
           {"Default", "compat=1.1"},
           {"Version2", "compat=0.10"},
           {"SmallestClusters", "cluster_size=512"},
           {"LargestClusters", "cluster_size=2M"},
           {"Subclusters", "extended_l2=on,cluster_size=16k"},
           {"Deflate", "compat=1.1", true},
           {"DeflateSmallClusters", "cluster_size=512", true},
           {"Zstd", "compression_type=zstd", true},
           {"Direct", "cluster_size=4k", false, CacheMode::kNone},
       }) {
    ConformanceCase one;
    one.name = variant.name;
    one.make = [variant](uint64_t size) { return Make(size, variant); };
    cases.push_back(one);
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Qcow2, BlockDeviceConformance, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(EncryptedQcow2, BlockDeviceConformance,
                         ::testing::Values(ConformanceCase{.name = "Luks", .make = MakeEncrypted}));

INSTANTIATE_TEST_SUITE_P(WritableQcow2, BlockDeviceConformance, ::testing::ValuesIn(WritableCases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace berth::testing
