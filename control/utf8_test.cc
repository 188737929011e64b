#include "control/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace berth::control {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";

TEST(Utf8Test, CharactersStay) {
  for (const std::string text :
       {"", "plain", "ä€😀", "\x7F", "\xEF\xBF\xBF", "\xF4\x8F\xBF\xBF", "\xED\x9F\xBF"}) {
    EXPECT_EQ(ValidUtf8(text), text);
  }
  EXPECT_EQ(ValidUtf8(absl::string_view("a\0b", 3)), std::string("a\0b", 3));
}

TEST(Utf8Test, OtherBytesAreReplaced) {
  const std::string one = kReplacement;
  EXPECT_EQ(ValidUtf8("a\xFF"
                      "b"),
            "a" + one + "b");
  EXPECT_EQ(ValidUtf8("\x80"), one);
  EXPECT_EQ(ValidUtf8("\xC0\xAF"), one + one);            // Overlong.
  EXPECT_EQ(ValidUtf8("\xE0\x80\xAF"), one + one + one);  // Overlong.
  EXPECT_EQ(ValidUtf8("\xED\xA0\x80"), one + one + one);  // A surrogate.
  EXPECT_EQ(ValidUtf8("\xF4\x90\x80\x80"), one + one + one + one);
  EXPECT_EQ(ValidUtf8("\xF0\x9F\x98"), one + one + one);  // The end is missing.
  EXPECT_EQ(ValidUtf8("\xC3"), one);
  EXPECT_EQ(ValidUtf8("\xC3"
                      "a"),
            one + "a");
}

TEST(Utf8Test, CutsBetweenCharacters) {
  EXPECT_EQ(ValidUtf8("abcdef", 6), "abcdef");
  EXPECT_EQ(ValidUtf8("abcdefg", 6), "abc…");
  EXPECT_EQ(ValidUtf8("ääää", 7), "ää…");
  EXPECT_EQ(ValidUtf8("ääää", 6), "ä…");
  EXPECT_EQ(ValidUtf8("😀😀", 7), "😀…");
  EXPECT_EQ(ValidUtf8("\xFF\xFF\xFF", 6), std::string(kReplacement) + "…");
  EXPECT_EQ(ValidUtf8("abc", 2), "");
  for (size_t size = 0; size < 20; ++size) {
    const std::string cut = ValidUtf8("aä€😀\xFF aä€😀\xFF", size);
    EXPECT_LE(cut.size(), size);
    EXPECT_EQ(ValidUtf8(cut), cut);
  }
}

}  // namespace
}  // namespace berth::control
