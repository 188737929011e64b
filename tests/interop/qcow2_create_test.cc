// Images that we make: qemu-img check finds nothing in them, and qemu-img info says of them what it says of
// those that qemu-img create makes with the same options.
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/opener/opener.h"
#include "image/opener/qcow2_files.h"
#include "nlohmann/json.hpp"
#include "tests/interop/program.h"
#include "tests/interop/temporary_directory.h"

namespace berth::testing {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

struct Options {
  qcow2::NewImageOptions image;
  Preallocation preallocation = Preallocation::kOff;
};

// From the text that qemu-img create takes after -o.
Options Parse(const std::string& text, uint64_t size) {
  Options options;
  options.image.size = size;
  const std::vector<std::string> parts = absl::StrSplit(text, ',', absl::SkipEmpty());
  for (const std::string& part : parts) {
    const std::vector<std::string> pair = absl::StrSplit(part, absl::MaxSplits('=', 1));
    const std::string& name = pair[0];
    const std::string& value = pair[1];
    qcow2::NewImageOptions& image = options.image;
    if (name == "compat") image.version = value == "0.10" ? 2 : 3;
    if (name == "cluster_size") image.cluster_size = std::stoull(value);
    if (name == "refcount_bits") image.refcount_bits = static_cast<uint32_t>(std::stoul(value));
    if (name == "lazy_refcounts") image.lazy_refcounts = value == "on";
    if (name == "extended_l2") image.extended_l2 = value == "on";
    if (name == "compression_type" && value == "zstd") {
      image.compression_type = qcow2::CompressionType::kZstd;
    }
    if (name == "backing_file") image.backing_file = value;
    if (name == "backing_fmt") image.backing_format = value;
    if (name == "data_file") image.data_file = value;
    if (name == "data_file_raw") image.data_file_raw = value == "on";
    if (name == "preallocation") {
      options.preallocation = value == "metadata" ? Preallocation::kMetadata
                              : value == "falloc" ? Preallocation::kFalloc
                              : value == "full"   ? Preallocation::kFull
                                                  : Preallocation::kOff;
    }
  }
  return options;
}

class Qcow2CreateTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return directory_.Path(name); }

  // What of qemu-img info does not differ between two files.
  Json Info(const std::string& path) const {
    Json info =
        Json::parse(RunToSuccess({"qemu-img", "info", "--output=json", "-f", "qcow2", path}), nullptr, false);
    EXPECT_FALSE(info.is_discarded());
    for (const char* name : {"filename", "actual-size", "full-backing-filename"}) info.erase(name);
    return info;
  }

  absl::StatusOr<ImageFileInfo> Create(const std::string& name, const Options& options,
                                       Progress* progress = nullptr) const {
    return CreateQcow2Image(ImageRoots::Anywhere(), Path(name), options.image, options.preallocation,
                            progress);
  }

  TemporaryDirectory directory_;
};

TEST_F(Qcow2CreateTest, ImagesAreAsQemuMakesThem) {
  RunToSuccess({"qemu-img", "create", "-q", "-f", "raw", Path("base.raw"), "3M"});
  RunToSuccess({"qemu-img", "create", "-q", "-f", "qcow2", Path("base.qcow2"), "5M"});
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  struct Case {
    std::string options;
    uint64_t size = 6 * kMiB + 512;
  };
  int number = 0;
  for (const Case& one : std::vector<Case>{
           {""},
           {"compat=0.10"},
           {"compat=0.10,cluster_size=512"},
           {"cluster_size=512,refcount_bits=64"},
           {"cluster_size=4096,refcount_bits=1,lazy_refcounts=on"},
           {"cluster_size=2097152,refcount_bits=2"},
           {"refcount_bits=4,compression_type=zstd"},
           {"refcount_bits=8,cluster_size=1024"},
           {"refcount_bits=32", uint64_t{1} << 40},
           {"extended_l2=on,compression_type=zstd"},
           {"extended_l2=on,cluster_size=16384,lazy_refcounts=on,preallocation=metadata"},
           {"preallocation=metadata"},
           {"compat=0.10,preallocation=metadata,cluster_size=512"},
           // Refcount table and blocks of several clusters each.
           {"preallocation=metadata,cluster_size=512,refcount_bits=64"},
           {"preallocation=falloc,cluster_size=4096"},
           {"preallocation=full,cluster_size=2097152"},
           {"backing_file=base.raw,backing_fmt=raw", 0},
           {"backing_file=base.qcow2,backing_fmt=qcow2,compat=0.10"},
           {"backing_file=base.qcow2,backing_fmt=qcow2,extended_l2=on,preallocation=metadata", 5 * kMiB},
           {"backing_file=./base.qcow2,backing_fmt=qcow2,cluster_size=512"},
           {"data_file=N.raw"},
           {"data_file=N.raw,data_file_raw=on,cluster_size=512"},
           {"data_file=N.raw,data_file_raw=on,extended_l2=on,refcount_bits=64"},
           {"data_file=N.raw,preallocation=falloc,lazy_refcounts=on"},
       }) {
    SCOPED_TRACE(one.options);
    const std::string ours = absl::StrCat("ours", ++number);
    const std::string theirs = absl::StrCat("theirs", number);
    const auto with_file = [&](const std::string& name) {
      const size_t at = one.options.find("N.raw");
      return at == std::string::npos ? one.options : std::string(one.options).replace(at, 1, name);
    };
    const auto made = Create(ours, Parse(with_file(Path(ours)), one.size));
    ASSERT_TRUE(made.ok()) << made.status();
    std::vector<std::string> create = {"qemu-img", "create", "-q", "-f", "qcow2"};
    if (!one.options.empty()) create.insert(create.end(), {"-o", with_file(Path(theirs))});
    // A relative name would mean a file in qemu's working directory.
    create.push_back(Path(theirs));
    if (one.size != 0) create.push_back(absl::StrCat(one.size));
    RunToSuccess(create);
    EXPECT_EQ(RunProgram({"qemu-img", "check", "-q", "-f", "qcow2", Path(ours)}).exit_code, 0);
    Json expected = Info(Path(theirs));
    Json& data = expected["format-specific"]["data"];
    if (data.contains("data-file")) data["data-file"] = Path(ours + ".raw");
    EXPECT_EQ(Info(Path(ours)), expected);
    // The disk reads as qemu's does.
    EXPECT_EQ(
        RunProgram({"qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", Path(ours), Path(theirs)})
            .exit_code,
        0);
    const auto opened = OpenImage({.format = ImageFormat::kQcow2, .path = Path(ours), .read_only = true},
                                  ImageRoots::Anywhere());
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ((*opened)->size(), made->size);
    // Again: the same answer, and nothing changes.
    const auto again = Create(ours, Parse(with_file(Path(ours)), one.size));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->size, made->size);
    if (one.options.find("preallocation=f") != std::string::npos) {
      struct stat info = {};
      const std::string file = one.options.find("data_file") == std::string::npos ? ours : ours + ".raw";
      ASSERT_EQ(stat(Path(file).c_str(), &info), 0);
      EXPECT_GE(static_cast<uint64_t>(info.st_blocks) * 512, one.size);
    }
  }
}

TEST_F(Qcow2CreateTest, OptionsThatCannotBe) {
  RunToSuccess({"qemu-img", "create", "-q", "-f", "raw", Path("base"), "3M"});
  for (const std::string options :
       {"cluster_size=100", "cluster_size=256", "cluster_size=4194304", "refcount_bits=3",
        "refcount_bits=128", "compat=0.10,refcount_bits=8", "compat=0.10,lazy_refcounts=on",
        "compat=0.10,extended_l2=on", "compat=0.10,compression_type=zstd", "compat=0.10,data_file=d",
        "extended_l2=on,cluster_size=8192", "data_file_raw=on",
        "data_file=d,data_file_raw=on,backing_file=base,backing_fmt=raw",
        "backing_file=base,backing_fmt=raw,preallocation=metadata", "backing_file=base",
        "backing_file=base,backing_fmt=vmdk", "backing_file=json:{},backing_fmt=raw", "data_file=nbd:a:1",
        "data_file=image"}) {
    const absl::Status status = Create("image", Parse(options, 1 << 20)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << options << ": " << status;
  }
  EXPECT_EQ(Create("image", Parse("", 1000)).status().code(), absl::StatusCode::kInvalidArgument);
  // The L1 table has at most 32 MiB.
  EXPECT_THAT(std::string(Create("image", Parse("cluster_size=512", uint64_t{200} << 30)).status().message()),
              HasSubstr("137438953472"));
  EXPECT_EQ(Create("image", Parse("preallocation=falloc", uint64_t{1} << 43)).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Create("image", Parse("backing_file=gone,backing_fmt=raw", 0)).status().code(),
            absl::StatusCode::kNotFound);
  const std::string full(1024, 'n');
  EXPECT_EQ(Create("image", Parse("backing_fmt=raw,backing_file=" + full, 0)).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (const auto& entry : std::filesystem::directory_iterator(Path("."))) {
    EXPECT_EQ(entry.path().filename(), "base");
  }
}

TEST_F(Qcow2CreateTest, WhatIsThereIsNotTouched) {
  ASSERT_TRUE(Create("image", Parse("", 1 << 20)).ok());
  for (const std::string options :
       {"cluster_size=4096", "lazy_refcounts=on", "compat=0.10", "refcount_bits=8", "compression_type=zstd",
        "extended_l2=on", "data_file=d"}) {
    EXPECT_EQ(Create("image", Parse(options, 1 << 20)).status().code(), absl::StatusCode::kAlreadyExists)
        << options;
  }
  EXPECT_EQ(Create("image", Parse("", 2 << 20)).status().code(), absl::StatusCode::kAlreadyExists);
  WriteFile(Path("raw"), "no image");
  EXPECT_EQ(Create("raw", Parse("", 1 << 20)).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadFile(Path("raw")), "no image");
  // A data file with data is somebody's; one that a crash left behind is taken.
  WriteFile(Path("full"), std::string(1 << 20, 'x'));
  EXPECT_EQ(Create("other", Parse("data_file=full", 1 << 20)).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_FALSE(std::filesystem::exists(Path("other")));
  WriteFile(Path("left"), "");
  std::filesystem::resize_file(Path("left"), 1 << 20);
  EXPECT_TRUE(Create("other", Parse("data_file=left", 1 << 20)).ok());
  // Cancelled: neither file is there.
  Progress progress;
  progress.Cancel();
  EXPECT_EQ(Create("cut", Parse("data_file=cut.raw,preallocation=full", 1 << 20), &progress).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(Create("cut", Parse("preallocation=metadata", 1 << 20), &progress).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_FALSE(std::filesystem::exists(Path("cut")));
  EXPECT_FALSE(std::filesystem::exists(Path("cut.raw")));
}

TEST_F(Qcow2CreateTest, NamesStayInsideTheRoots) {
  std::filesystem::create_directory(Path("root"));
  const auto roots = ImageRoots::Within({Path("root")});
  ASSERT_TRUE(roots.ok()) << roots.status();
  RunToSuccess({"qemu-img", "create", "-q", "-f", "raw", Path("outside"), "1M"});
  for (const std::string options : {"backing_file=../outside,backing_fmt=raw", "data_file=../made"}) {
    const Options parsed = Parse(options, 1 << 20);
    EXPECT_EQ(
        CreateQcow2Image(*roots, Path("root/image"), parsed.image, parsed.preallocation).status().code(),
        absl::StatusCode::kPermissionDenied)
        << options;
  }
  EXPECT_FALSE(std::filesystem::exists(Path("made")));
  EXPECT_FALSE(std::filesystem::exists(Path("root/image")));
}

TEST_F(Qcow2CreateTest, InspectionSaysWhatQemuImgInfoSays) {
  RunToSuccess({"qemu-img", "create", "-q", "-f", "raw", Path("base"), "1M"});
  RunToSuccess({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "-b", "base", "-F",
                "raw", Path("middle"), "2M"});
  RunToSuccess({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,compression_type=zstd", "-b",
                "middle", "-F", "qcow2", Path("top"), "3M"});
  RunToSuccess({"qemu-img", "snapshot", "-c", "nightly", Path("top")});
  RunToSuccess({"qemu-img", "bitmap", "--add", "-g", "128k", Path("top"), "b0"});
  RunToSuccess({"qemu-img", "bitmap", "--add", "--disable", Path("top"), "b1"});
  const auto chain = InspectQcow2Image(ImageRoots::Anywhere(), Path("top"), std::nullopt, true);
  ASSERT_TRUE(chain.ok()) << chain.status();
  ASSERT_EQ(chain->size(), 3u);
  EXPECT_EQ((*chain)[0].file.size, uint64_t{3} << 20);
  const Qcow2Details& top = *(*chain)[0].qcow2;
  EXPECT_EQ(top.full_backing_file, Path("middle"));
  EXPECT_EQ(top.header.backing_format, "qcow2");
  EXPECT_TRUE(top.header.extended_l2());
  ASSERT_EQ(top.snapshots.size(), 1u);
  EXPECT_EQ(top.snapshots[0].name, "nightly");
  EXPECT_EQ(top.snapshots[0].disk_size, uint64_t{3} << 20);
  ASSERT_EQ(top.bitmaps.size(), 2u);
  EXPECT_EQ(top.bitmaps[0].name, "b0");
  EXPECT_EQ(top.bitmaps[0].granularity_bits, 17u);
  EXPECT_EQ(top.bitmaps[0].flags, qcow2::kBitmapAuto);
  EXPECT_EQ(top.bitmaps[1].flags, 0u);
  EXPECT_EQ((*chain)[1].path, Path("middle"));
  EXPECT_EQ((*chain)[1].qcow2->header.compatible_features, qcow2::kLazyRefcounts);
  EXPECT_EQ((*chain)[2].path, Path("base"));
  EXPECT_FALSE((*chain)[2].qcow2.has_value());
  EXPECT_EQ(InspectQcow2Image(ImageRoots::Anywhere(), Path("top"), std::nullopt, false)->size(), 1u);
  // A loop ends, and the lowest image says nothing of a format that is not stated.
  RunToSuccess({"qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "top", Path("middle")});
  EXPECT_THAT(
      std::string(
          InspectQcow2Image(ImageRoots::Anywhere(), Path("top"), std::nullopt, true).status().message()),
      HasSubstr("256"));
}

}  // namespace
}  // namespace berth::testing
