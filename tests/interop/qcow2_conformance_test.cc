// The suite that every device has to pass, over qcow2 images that qemu-img made in many ways.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "image/opener/opener.h"
#include "image/raw/raw_device.h"
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

}  // namespace
}  // namespace berth::testing
