#include "image/opener/opener.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/filter/rate_limit.h"
#include "image/raw/raw_device.h"
#include "image/raw/temporary_image.h"

namespace berth {
namespace {

using testing::HasSubstr;
constexpr uint64_t kMiB = uint64_t{1} << 20;

absl::StatusOr<std::shared_ptr<BlockDevice>> Open(const ImageSpec& spec) {
  return OpenImage(spec, ImageRoots::Anywhere());
}

TEST(OpenerTest, FormatsAreNamed) {
  for (const ImageFormat format :
       {ImageFormat::kRaw, ImageFormat::kQcow2, ImageFormat::kMemory, ImageFormat::kNull}) {
    EXPECT_EQ(*ParseImageFormat(ImageFormatName(format)), format);
  }
  for (const char* name : {"", "vmdk", "RAW", "raw "}) {
    const absl::Status status = ParseImageFormat(name).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("raw, qcow2, luks, memory and null"));
  }
  ImageSpec unknown;
  unknown.format = static_cast<ImageFormat>(77);
  EXPECT_EQ(Open(unknown).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(OpenerTest, SpecsThatMakeNoSenseAreRefused) {
  TemporaryImage image(MemoryDirectory(), kMiB);
  const ImageSpec bad[] = {
      {.format = ImageFormat::kRaw, .path = ""},
      {.format = ImageFormat::kRaw, .path = image.path(), .size = 5},
      {.format = ImageFormat::kMemory, .path = image.path(), .size = 5},
      {.format = ImageFormat::kMemory},
      {.format = ImageFormat::kMemory, .size = ~uint64_t{0}},
      {.format = ImageFormat::kNull},
      {.path = image.path(), .snapshot = "1"},
      {.path = image.path(), .backing_format = ImageFormat::kRaw},
      {.format = ImageFormat::kQcow2, .path = image.path(), .size = 5, .read_only = true},
      {.format = ImageFormat::kQcow2, .path = image.path(), .read_only = true},  // It is raw.
  };
  for (const ImageSpec& spec : bad) {
    EXPECT_EQ(Open(spec).status().code(), absl::StatusCode::kInvalidArgument) << Open(spec).status();
  }
  EXPECT_EQ(Open({.path = image.path(), .offset = kMiB + 1}).status().code(), absl::StatusCode::kOutOfRange);
}

TEST(OpenerTest, ModesReachTheImage) {
  TemporaryImage image(MemoryDirectory(), kMiB);
  auto exclusive = Open({.path = image.path()});
  ASSERT_TRUE(exclusive.ok()) << exclusive.status();
  EXPECT_TRUE((*exclusive)->traits().can_discard);
  EXPECT_FALSE(Open({.path = image.path()}).ok());
  ImageSpec spec;
  spec.path = image.path();
  spec.lock = LockMode::kNone;
  spec.discard = DiscardMode::kIgnore;
  spec.rate_limits.operations_per_second = 5;
  auto free = Open(spec);
  ASSERT_TRUE(free.ok()) << free.status();
  EXPECT_FALSE((*free)->traits().can_discard);
  const auto* limit = dynamic_cast<const RateLimitDevice*>(free->get());
  ASSERT_NE(limit, nullptr);
  EXPECT_EQ(limit->limits(), spec.rate_limits);
}

TEST(OpenerTest, EveryModeReachesTheImageAndItsFile) {
  TemporaryImage image(DiskDirectory(), kMiB);
  for (const CacheMode cache : {CacheMode::kWriteback, CacheMode::kWritethrough, CacheMode::kNone,
                                CacheMode::kDirectsync, CacheMode::kUnsafe}) {
    for (const LockMode lock : {LockMode::kExclusive, LockMode::kSharedWriter, LockMode::kNone}) {
      for (const bool read_only : {false, true}) {
        ImageSpec spec;
        spec.path = image.path();
        spec.read_only = read_only;
        spec.cache = cache;
        spec.discard = DiscardMode::kIgnore;
        spec.lock = lock;
        auto device = Open(spec);
        ASSERT_TRUE(device.ok()) << device.status();
        const auto* raw = dynamic_cast<const RawDevice*>(device->get());
        ASSERT_NE(raw, nullptr);
        EXPECT_EQ(raw->options().read_only, read_only);
        EXPECT_EQ(raw->options().cache, cache);
        EXPECT_EQ(raw->options().discard, DiscardMode::kIgnore);
        EXPECT_EQ(raw->options().lock, lock);
      }
    }
  }
}

TEST(OpenerTest, FiltersLieOverTheImage) {
  TemporaryImage image(MemoryDirectory(), kMiB);
  auto raw = Open({.path = image.path(), .offset = 4096, .length = 8192});
  ASSERT_TRUE(raw.ok()) << raw.status();
  EXPECT_EQ((*raw)->size(), 8192u);
  EXPECT_FALSE((*raw)->traits().read_only);
  raw->reset();
  for (const ImageFormat format : {ImageFormat::kMemory, ImageFormat::kNull}) {
    ImageSpec spec = {.format = format, .size = kMiB};
    EXPECT_FALSE((*Open(spec))->traits().read_only);
    spec.read_only = true;
    spec.rate_limits.operations_per_second = 5;
    auto device = Open(spec);
    ASSERT_TRUE(device.ok()) << device.status();
    EXPECT_TRUE((*device)->traits().read_only);
    EXPECT_FALSE((*device)->traits().resizable);
  }
}

}  // namespace
}  // namespace berth
