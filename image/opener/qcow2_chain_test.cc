#include "image/opener/qcow2_chain.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/block/error_reason.h"
#include "image/qcow2/format/header.h"

namespace berth {
namespace {

namespace fs = std::filesystem;
using qcow2::Header;
using testing::HasSubstr;

constexpr uint64_t kCluster = 65'536;
constexpr uint64_t kSize = uint64_t{1} << 20;

class Qcow2ChainTest : public testing::Test {
 protected:
  void SetUp() override {
    base_ = testing::TempDir() + "/berth-chain-XXXXXX";
    ASSERT_NE(mkdtemp(base_.data()), nullptr);
    // TempDir() may be a link, and the tests compare paths.
    base_ = fs::canonical(base_);
    fs::create_directories(base_ + "/images/sub");
    fs::create_directories(base_ + "/outside");
    auto roots = ImageRoots::Within({base_ + "/images"});
    ASSERT_TRUE(roots.ok()) << roots.status();
    roots_ = *std::move(roots);
  }
  void TearDown() override { fs::remove_all(base_); }

  std::string Path(const std::string& name) const { return base_ + "/images/" + name; }

  // An image in which nothing is allocated.
  void WriteImage(const std::string& path, const std::string& backing,
                  const std::optional<std::string>& format,
                  const std::optional<std::string>& data_file = std::nullopt, uint64_t features = 0) {
    Header header;
    header.size = kSize;
    header.l1_size = 1;
    header.refcount_table_offset = kCluster;
    header.refcount_table_clusters = 1;
    header.l1_table_offset = 2 * kCluster;
    header.incompatible_features = features;
    header.backing_file = backing;
    header.backing_format = format;
    header.data_file = data_file;
    const auto bytes = EncodeHeader(header);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes->data()), static_cast<std::streamsize>(bytes->size()));
    fs::resize_file(path, 3 * kCluster);
  }
  void WriteRaw(const std::string& path, uint64_t size) {
    std::ofstream(path, std::ios::binary).put('x');
    fs::resize_file(path, size);
  }

  ImageSpec Spec(const std::string& name) const {
    ImageSpec spec;
    spec.format = ImageFormat::kQcow2;
    spec.path = Path(name);
    spec.read_only = true;
    return spec;
  }
  absl::Status Error(const ImageSpec& spec) const { return OpenQcow2Chain(spec, roots_).status(); }
  absl::Status Error(const std::string& name) const { return Error(Spec(name)); }

  std::string base_;
  ImageRoots roots_ = ImageRoots::Anywhere();
};

TEST_F(Qcow2ChainTest, NamesAreRelativeToTheImage) {
  WriteRaw(Path("sub/base.raw"), kSize / 2);
  WriteImage(Path("sub/middle"), "base.raw", "raw");
  WriteImage(Path("top"), "sub/middle", "qcow2");
  const auto device = OpenQcow2Chain(Spec("top"), roots_);
  ASSERT_TRUE(device.ok()) << device.status();
  EXPECT_EQ((*device)->size(), kSize);
  EXPECT_TRUE((*device)->traits().read_only);

  WriteImage(Path("absolute"), "file:" + Path("sub/middle"), "qcow2");
  EXPECT_TRUE(Error("absolute").ok()) << Error("absolute");
  WriteRaw(Path("a:b"), kSize);
  WriteImage(Path("colon"), "./a:b", "raw");
  EXPECT_TRUE(Error("colon").ok()) << Error("colon");
}

TEST_F(Qcow2ChainTest, NothingOutsideTheRootsIsOpened) {
  WriteRaw(base_ + "/outside/secret", kSize);
  fs::create_symlink(base_ + "/outside/secret", Path("link"));
  for (const std::string& name :
       {base_ + "/outside/secret", std::string("../outside/secret"), std::string("link")}) {
    WriteImage(Path("top"), name, "raw");
    const absl::Status status = Error("top");
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << name;
    EXPECT_EQ(ErrorReason(status), kReasonOutsideImageRoots);
    EXPECT_THAT(std::string(status.message()), HasSubstr(Path("top")));
    WriteImage(Path("top"), "", std::nullopt, name, qcow2::kExternalDataFile);
    EXPECT_EQ(Error("top").code(), absl::StatusCode::kPermissionDenied) << name;
  }
}

TEST_F(Qcow2ChainTest, OnlyPlainFileNamesAreNames) {
  for (const std::string name : {"json:{\"driver\":\"nbd\"}", "nbd://host/export", "ssh:host", "file:"}) {
    WriteImage(Path("top"), name, "raw");
    EXPECT_EQ(Error("top").code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(Error("top").message()), HasSubstr(Path("top")));
  }
  EXPECT_THAT(std::string(ResolveNameInImage("/a/b", "json:{}").status().message()),
              HasSubstr("qemu-img rebase"));
  EXPECT_EQ(*ResolveNameInImage("/a/b", "c"), "/a/c");
  EXPECT_EQ(*ResolveNameInImage("b", "c"), "c");
  EXPECT_EQ(*ResolveNameInImage("/a/b", "/c:d"), "/c:d");
  EXPECT_FALSE(ResolveNameInImage("/a/b", "c:d/e").ok());
}

TEST_F(Qcow2ChainTest, AFormatIsStatedAndNeverGuessed) {
  // The raw file's content looks like a qcow2 image with a backing file of its own.
  WriteImage(Path("trap"), "/etc/passwd", "raw");
  WriteImage(Path("top"), "trap", std::nullopt);
  EXPECT_EQ(Error("top").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(Error("top").message()), HasSubstr("without its format"));
  ImageSpec spec = Spec("top");
  spec.backing_format = ImageFormat::kRaw;
  EXPECT_TRUE(Error(spec).ok()) << Error(spec);
  spec.backing_format = ImageFormat::kQcow2;
  EXPECT_EQ(Error(spec).code(), absl::StatusCode::kPermissionDenied);
  spec.backing_format = ImageFormat::kMemory;
  EXPECT_EQ(Error(spec).code(), absl::StatusCode::kInvalidArgument);
  // What the image states is not overruled.
  WriteImage(Path("top"), "trap", "raw");
  spec.backing_format = ImageFormat::kQcow2;
  EXPECT_TRUE(Error(spec).ok()) << Error(spec);
  WriteImage(Path("top"), "trap", "vmdk");
  EXPECT_EQ(Error("top").code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(Error("top").message()), HasSubstr("\"vmdk\""));
}

TEST_F(Qcow2ChainTest, LoopsAndEndlessChainsEnd) {
  WriteImage(Path("self"), "self", "qcow2");
  EXPECT_THAT(std::string(Error("self").message()), HasSubstr("a second time"));
  WriteImage(Path("a"), "b", "qcow2");
  fs::create_hard_link(Path("a"), Path("other-name-of-a"));
  WriteImage(Path("b"), "other-name-of-a", "qcow2");
  EXPECT_THAT(std::string(Error("a").message()), HasSubstr("a second time"));
  WriteImage(Path("data"), "", std::nullopt, "data", qcow2::kExternalDataFile);
  EXPECT_THAT(std::string(Error("data").message()), HasSubstr("a second time"));

  for (size_t i = 0; i <= kMostLayers; ++i) {
    WriteImage(Path(absl::StrCat(i)), i == 0 ? "" : absl::StrCat(i - 1), "qcow2");
  }
  EXPECT_TRUE(Error(absl::StrCat(kMostLayers - 1)).ok()) << Error(absl::StrCat(kMostLayers - 1));
  EXPECT_THAT(std::string(Error(absl::StrCat(kMostLayers)).message()), HasSubstr("more than 256 images"));
}

TEST_F(Qcow2ChainTest, WhatIsMissingOrBrokenIsNamed) {
  WriteImage(Path("top"), "nothing", "raw");
  EXPECT_EQ(Error("top").code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Error("top").message()), HasSubstr(Path("nothing")));
  WriteRaw(Path("raw"), kSize);
  WriteImage(Path("top"), "raw", "qcow2");
  EXPECT_EQ(Error("top").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(Error("top").message()), HasSubstr(Path("raw")));
  WriteRaw(Path("empty"), 0);
  WriteImage(Path("top"), "empty", "qcow2");
  EXPECT_EQ(Error("top").code(), absl::StatusCode::kInvalidArgument);
  WriteImage(Path("top"), "empty", "raw");
  EXPECT_TRUE(Error("top").ok()) << Error("top");
  WriteImage(Path("top"), "", std::nullopt, std::nullopt, qcow2::kExternalDataFile);
  EXPECT_THAT(std::string(Error("top").message()), HasSubstr("does not name it"));
  WriteImage(Path("top"), "", std::nullopt, "empty", qcow2::kExternalDataFile);
  EXPECT_TRUE(Error("top").ok()) << Error("top");
}

TEST_F(Qcow2ChainTest, WhatMustNotBeWrittenIsNot) {
  // No cluster of these images has a refcount.
  WriteImage(Path("top"), "", std::nullopt);
  ImageSpec spec = Spec("top");
  spec.read_only = false;
  EXPECT_EQ(Error(spec).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(Error(spec).message()), HasSubstr("berthctl image check --repair=all"));
  WriteImage(Path("top"), "", std::nullopt, std::nullopt, qcow2::kCorrupt);
  EXPECT_EQ(Error(spec).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Error("top").ok()) << Error("top");
  // One that was not closed is repaired; a reader needs no refcounts and changes nothing.
  WriteImage(Path("top"), "", std::nullopt, std::nullopt, qcow2::kDirty);
  EXPECT_TRUE(Error("top").ok()) << Error("top");
  EXPECT_EQ(fs::file_size(Path("top")), 3 * kCluster);
  EXPECT_TRUE(Error(spec).ok()) << Error(spec);
  EXPECT_GT(fs::file_size(Path("top")), 3 * kCluster);
}

}  // namespace
}  // namespace berth
