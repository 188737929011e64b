#include "nbd/protocol_string.h"

#include <string>

#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

// proto.md, "Conventions": "a sequence of UTF-8 code points, which ... MUST NOT contain NUL characters".
TEST(ProtocolStringTest, IsUtf8WithoutNul) {
  for (const char* good :
       {"", "disk", "a/b\\c:d", "\t\x7f", "Füße", "\u20ac", "\U0001f40b", "\ud7ff\ue000", "\U0010ffff"}) {
    EXPECT_TRUE(IsProtocolString(good)) << good;
  }
  EXPECT_FALSE(IsProtocolString(absl::string_view("a\0b", 3)));
  const char* const bad[] = {
      "\x80",              // A continuation that continues nothing.
      "a\xc3",             // Cut off.
      "\xe2\x82",          //
      "\xc3(",             // Not continued.
      "\xc0\xaf",          // Overlong forms of '/'.
      "\xe0\x80\xaf",      //
      "\xf0\x80\x80\xaf",  //
      "\xed\xa0\x80",      // A surrogate.
      "\xf4\x90\x80\x80",  // Past U+10FFFF.
      "\xf8\x88\x80\x80\x80",
      "\xff",
  };
  for (const char* text : bad) EXPECT_FALSE(IsProtocolString(text)) << Quoted(text);
}

TEST(ProtocolStringTest, IsCutBetweenCharacters) {
  EXPECT_EQ(CutAtCharacter("abc", 3), "abc");
  EXPECT_EQ(CutAtCharacter("abc", 2), "ab");
  EXPECT_EQ(CutAtCharacter("a\u20acb", 4), "a\u20ac");
  EXPECT_EQ(CutAtCharacter("a\u20acb", 3), "a");
  EXPECT_EQ(CutAtCharacter("a\u20acb", 2), "a");
  EXPECT_EQ(CutAtCharacter("\u20ac", 0), "");
}

TEST(ProtocolStringTest, IsQuotedForPeople) {
  EXPECT_EQ(Quoted(""), "''");
  EXPECT_EQ(Quoted("Füße"), "'Füße'");
  EXPECT_EQ(Quoted("it's\n\x1b[2J"), "'it\\'s\\n\\x1b[2J'");
  EXPECT_EQ(Quoted("\xff"), "'\\xff'");
  EXPECT_EQ(Quoted(std::string(80, 'a')), "'" + std::string(80, 'a') + "'");
  EXPECT_EQ(Quoted(std::string(4096, 'a')), "'" + std::string(80, 'a') + "...'");
  EXPECT_TRUE(IsProtocolString(Quoted("\xe2\x82")));
}

}  // namespace
}  // namespace berth::nbd
