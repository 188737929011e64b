#include "control/berthctl/size_text.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace berth::berthctl {
namespace {

TEST(SizeTextTest, ParsesWhatPeopleWrite) {
  const std::pair<const char*, uint64_t> cases[] = {{"0", 0},
                                                    {"4096", 4096},
                                                    {"512B", 512},
                                                    {"1k", 1024},
                                                    {"512M", 512 << 20},
                                                    {"1MiB", 1 << 20},
                                                    {"1mib", 1 << 20},
                                                    {"1MB", 1000000},
                                                    {"10G", 10737418240},
                                                    {"3T", 3298534883328},
                                                    {"2P", 2251799813685248},
                                                    {"9223372036854775807", 9223372036854775807u},
                                                    {"8191P", 9222246136947933184u}};
  for (const auto& [text, bytes] : cases) {
    const absl::StatusOr<uint64_t> size = ParseSize(text);
    ASSERT_TRUE(size.ok()) << size.status();
    EXPECT_EQ(*size, bytes) << text;
  }
}

TEST(SizeTextTest, RefusesWhatIsNoSize) {
  for (const char* text : {"", "G", "-1", "+1", " 1", "1 ", "1 G", "1.5G", "1X", "1GiBs", "1iB", "0x10",
                           "8192P", "9223372036854775808", "99999999999999999999", "9223372036854775807K"}) {
    const absl::StatusOr<uint64_t> size = ParseSize(text);
    EXPECT_FALSE(size.ok()) << text;
    EXPECT_THAT(std::string(size.status().message()), testing::HasSubstr(std::string("'") + text + "'"));
  }
}

TEST(SizeTextTest, FormatsForPeople) {
  const std::pair<uint64_t, const char*> cases[] = {{0, "0 B"},
                                                    {1023, "1023 B"},
                                                    {1024, "1 KiB"},
                                                    {1536, "1.5 KiB"},
                                                    {1048575, "1 MiB"},
                                                    {uint64_t{10} << 30, "10 GiB"},
                                                    {9223372036854775807u, "8 EiB"}};
  for (const auto& [bytes, text] : cases) EXPECT_EQ(FormatSize(bytes), text);
  EXPECT_EQ(FormatExactSize(512), "512 bytes");
  EXPECT_EQ(FormatExactSize(1048575), "1 MiB (1048575 bytes)");
}

}  // namespace
}  // namespace berth::berthctl
