// The command line, and the trees of options in it. What is wrong with them: tests/interop/berth_nbd_test.cc.
#include "control/berth_nbd/command_line.h"

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "control/berth_nbd/option_tree.h"
#include "gtest/gtest.h"

namespace berth::control {
namespace {

using Action = CommandLine::Action;

absl::StatusOr<CommandLine> Parse(std::vector<std::string> words) {
  words.insert(words.begin(), "/usr/bin/qemu-nbd");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  return ParseCommandLine(static_cast<int>(words.size()), argv.data());
}

CommandLine Good(const std::vector<std::string>& words) {
  absl::StatusOr<CommandLine> line = Parse(words);
  EXPECT_TRUE(line.ok()) << line.status();
  return line.value_or(CommandLine());
}

TEST(CommandLineTest, HasQemusDefaults) {
  const CommandLine line = Good({"disk"});
  EXPECT_EQ(line.program, "qemu-nbd");
  EXPECT_EQ(line.action, Action::kServe);
  EXPECT_EQ(line.file, "disk");
  EXPECT_EQ(line.shared, 1u);
  EXPECT_EQ(line.cache, CacheMode::kWriteback);
  EXPECT_EQ(line.discard, DiscardMode::kIgnore);
  EXPECT_FALSE(line.persistent || line.read_only || line.fork || line.format.has_value());
  EXPECT_EQ(line.handshake_limit, absl::Seconds(10));
}

TEST(CommandLineTest, ReadsOptionsAsGetoptDoes) {
  // Joined, bundled, shortened, behind the file, after "--".
  const CommandLine line =
      Good({"-rte0x10", "disk", "--form", "raw", "-xname", "--pers", "--sock=/run/s", "-o", "0x200"});
  EXPECT_TRUE(line.read_only && line.persistent);
  EXPECT_EQ(line.shared, 16u);
  EXPECT_EQ(line.format, "raw");
  EXPECT_EQ(line.export_name, "name");
  EXPECT_EQ(line.socket, "/run/s");
  EXPECT_EQ(line.offset, 512u);
  EXPECT_EQ(line.file, "disk");
  EXPECT_EQ(Good({"-r", "--", "-disk"}).file, "-disk");
  EXPECT_EQ(Good({"-B", "one", "-Btwo", "disk"}).bitmaps, (std::vector<std::string>{"one", "two"}));
}

TEST(CommandLineTest, StopsAtHelpAndVersion) {
  EXPECT_EQ(Good({"-h", "--nope"}).action, Action::kHelp);
  EXPECT_EQ(Good({"-V", "one", "two"}).action, Action::kVersion);
  EXPECT_EQ(Good({"-T", "help", "--nope"}).action, Action::kEventNames);
  EXPECT_FALSE(Parse({"--nope", "-h"}).ok());
  EXPECT_TRUE(absl::StartsWith(VersionText("qemu-nbd"), "qemu-nbd "));
}

TEST(CommandLineTest, ReadsSnapshots) {
  EXPECT_EQ(Good({"-l", "name", "disk"}).snapshot->id_or_name, "name");
  const CommandLine both = Good({"-l", "snapshot.id=1,snapshot.name=a,,b", "disk"});
  EXPECT_EQ(both.snapshot->id, "1");
  EXPECT_EQ(both.snapshot->name, "a,b");
  EXPECT_TRUE(both.read_only);
  EXPECT_FALSE(Parse({"-l", "snapshot.size=1", "disk"}).ok());
}

TEST(CommandLineTest, KnowsDevicesAndPorts) {
  EXPECT_EQ(Good({"-d", "/dev/nbd0"}).action, Action::kDisconnect);
  EXPECT_EQ(Good({"-c", "auto", "disk"}).device, "auto");
  EXPECT_EQ(Good({"-L", "-p", "0"}).port, 0);
  EXPECT_EQ(Good({"--handshake-limit", "0", "disk"}).handshake_limit, absl::InfiniteDuration());
  EXPECT_FALSE(Parse({"-c", "/dev/nbdx", "disk"}).ok());
}

absl::StatusOr<OptionTree> Tree(const std::string& text) { return OptionTree::Parse(text, "type"); }

TEST(OptionTreeTest, IsTheSameInBothForms) {
  for (const char* text : {"driver=raw,offset=4k,file.driver=file,file.filename=a,,b,read-only=on",
                           R"(json:{"driver": "raw", "offset": "4k", "file.driver": "file",
                                    "file": {"filename": "a,b"}, "read-only": true})",
                           R"({"driver": "raw", "offset": 4096, "file": {"driver": "file", "filename": "a,b"},
                               "read-only": true})"}) {
    const absl::StatusOr<OptionTree> tree = Tree(text);
    ASSERT_TRUE(tree.ok()) << tree.status();
    EXPECT_EQ(*tree->Text("driver"), "raw") << text;
    EXPECT_EQ(*tree->Bytes("offset"), 4096u);
    EXPECT_TRUE(*tree->Switch("read-only", false));
    ASSERT_NE(tree->Child("file"), nullptr);
    EXPECT_EQ(*tree->Child("file")->Text("filename"), "a,b");
    EXPECT_EQ(tree->Child("file")->Name("filename"), "file.filename");
  }
}

TEST(OptionTreeTest, KnowsWhatNobodyAskedFor) {
  const absl::StatusOr<OptionTree> tree = Tree("secret,id=a,speed=9");
  EXPECT_EQ(*tree->Text("type"), "secret");
  EXPECT_EQ(*tree->Text("id"), "a");
  EXPECT_TRUE(absl::StrContains(tree->CheckAllRead().message(), "speed"));
  EXPECT_EQ(*tree->Bytes("speed"), 9u);
  EXPECT_TRUE(tree->CheckAllRead().ok());
}

TEST(OptionTreeTest, TellsNullFromNothing) {
  const absl::StatusOr<OptionTree> tree = Tree(R"({"backing": null})");
  ASSERT_NE(tree->Child("backing"), nullptr);
  EXPECT_TRUE(tree->Child("backing")->IsNull());
  EXPECT_EQ(tree->Child("file"), nullptr);
}

TEST(OptionTreeTest, RefusesWhatIsTooMuch) {
  std::string deep = "{}";
  for (int i = 0; i < 40; ++i) deep = absl::StrCat(R"({"a": )", deep, "}");
  EXPECT_TRUE(absl::StrContains(Tree(deep).status().message(), "deep"));
  EXPECT_FALSE(Tree(std::string(100'000, 'a')).ok());
  EXPECT_FALSE(Tree("a..b=c").ok());
  EXPECT_FALSE(Tree("=c").ok());
  EXPECT_FALSE(Tree("{\"a\": 1").ok());
  EXPECT_FALSE(Tree("[1]").ok() && Tree("json:[1]").ok());
  for (const char* wrong : {"a=1x", "a=-1", "a=", "a=9999999999G"})
    EXPECT_FALSE(Tree(wrong)->Bytes("a").ok()) << wrong;
}

}  // namespace
}  // namespace berth::control
