#include "nbd/tls/psk_file.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

constexpr char kHex[] = "00112233445566778899aabbccddeeff";

TEST(PskFileTest, AUserALine) {
  const auto keys = ParsePskFile(absl::StrCat("alice:", kHex, "\nbob:FF", kHex, "\n"));
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 2u);
  EXPECT_EQ(keys->at("alice").size(), 16u);
  EXPECT_EQ(keys->at("alice")[1], 0x11);
  EXPECT_EQ(keys->at("bob").size(), 17u);
  EXPECT_EQ(keys->at("bob")[0], 0xff);
}

TEST(PskFileTest, ANameInHexadecimalDigits) {
  const auto keys = ParsePskFile(absl::StrCat("#613a62:", kHex));
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ(keys->count("a:b"), 1u);
}

TEST(PskFileTest, EmptyLinesAndOtherLineEndsDoNotMatter) {
  const auto keys = ParsePskFile(absl::StrCat("\n\r\nalice:", kHex, "\r\n\n"));
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ(keys->at("alice").size(), 16u);
}

TEST(PskFileTest, ErrorsNameTheLineAndNoKey) {
  const std::string good = absl::StrCat("alice:", kHex, "\n");
  const struct {
    std::string text;
    std::string reason;
  } kCases[] = {
      {"", "there is no key"},
      {"\n\n", "there is no key"},
      {absl::StrCat(good, "bob"), "line 2: not of the form"},
      {absl::StrCat(good, ":", kHex), "line 2: a user's name"},
      {absl::StrCat(good, std::string(256, 'u'), ":", kHex), "line 2: a user's name"},
      {absl::StrCat(good, "#6100:", kHex), "line 2: a user's name"},
      {absl::StrCat(good, "#zz:", kHex), "line 2: a name that begins with #"},
      {absl::StrCat(good, "bob:", kHex, "0"), "line 2: the key is not"},
      {absl::StrCat(good, "bob:x", kHex, "0"), "line 2: the key is not"},
      {absl::StrCat(good, "bob:", kHex, ":0011"), "line 2: the key is not"},
      {absl::StrCat(good, "bob:0011"), "line 2: the key has 2 bytes, and 16 to 512"},
      {absl::StrCat(good, "bob:", std::string(1026, '0')), "line 2: the key has 513 bytes"},
      {absl::StrCat(good, good), "line 2: the user has a key already"},
  };
  for (const auto& test : kCases) {
    const absl::Status status = ParsePskFile(test.text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << test.text;
    EXPECT_NE(status.message().find(test.reason), absl::string_view::npos) << status;
    EXPECT_EQ(status.message().find("0011"), absl::string_view::npos) << status;
  }
}

}  // namespace
}  // namespace berth::nbd
