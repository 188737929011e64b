// docs/protocol.md says which test shows what the specification demands. This shows that the tests are there.
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace berth {
namespace {

constexpr char kPage[] = "docs/protocol.md";
constexpr char kHead[] = "| | demand | shown by |";

std::string Content(const std::string& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << "there is no file " << path << " among the data of this test";
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

struct Reference {
  std::string test;  // Of a C++ test its name; of a script a text in quotes.
  std::string file;  // Its short name.
};

std::vector<Reference> References(const std::string& line) {
  static const std::regex pattern(R"(\[([^\]]+)\]\[([^\]]+)\])");
  std::vector<Reference> references;
  for (std::sregex_iterator match(line.begin(), line.end(), pattern), end; match != end; ++match) {
    references.push_back({(*match)[1], (*match)[2]});
  }
  return references;
}

bool IsRow(const std::string& line) { return line.rfind("| M ", 0) == 0 || line.rfind("| S ", 0) == 0; }

class ProtocolTableTest : public testing::Test {
 protected:
  ProtocolTableTest() {
    static const std::regex pattern(R"(^\[([^\]]+)\]: \.\./(\S+)$)");
    for (const std::string& line : lines_) {
      std::smatch match;
      if (std::regex_match(line, match, pattern)) files_[match[1]] = match[2];
    }
  }

  const std::vector<std::string> lines_ = Lines(Content(kPage));
  std::map<std::string, std::string> files_;  // Path of each short name.
};

TEST_F(ProtocolTableTest, EveryTestIsThere) {
  std::map<std::string, std::string> contents;
  std::set<std::string> used;
  for (const std::string& line : lines_) {
    for (const Reference& reference : References(line)) {
      SCOPED_TRACE(line);
      ASSERT_TRUE(files_.count(reference.file)) << "no file is called [" << reference.file << "]";
      used.insert(reference.file);
      const std::string& path = files_[reference.file];
      if (!contents.count(path)) contents[path] = Content(path);
      const bool script = reference.test.front() == '"';
      const std::regex definition("(^|\n)(TYPED_)?TEST(_F|_P)?\\(\\w+,\\s*" + reference.test + "\\)");
      EXPECT_TRUE(script ? contents[path].find(reference.test) != std::string::npos
                         : std::regex_search(contents[path], definition))
          << path << " has no test " << reference.test;
    }
  }
  for (const auto& [name, path] : files_) EXPECT_TRUE(used.count(name)) << path << " is not referred to";
}

TEST_F(ProtocolTableTest, EveryDemandHasATest) {
  size_t rows = 0;
  bool of_demands = false;  // The table that the line is in.
  for (const std::string& line : lines_) {
    if (line.rfind("| |", 0) == 0) of_demands = line == kHead;
    if (!of_demands || line.rfind("| ", 0) != 0 || line == kHead) continue;
    EXPECT_TRUE(IsRow(line)) << "neither M nor S: " << line;
    EXPECT_FALSE(References(line).empty()) << "shown by no test: " << line;
    ++rows;
  }
  EXPECT_GT(rows, 50u);
}

}  // namespace
}  // namespace berth
