#include "nbd/access_rules.h"

#include "gtest/gtest.h"

namespace berth::nbd {
namespace {

bool Allows(const std::vector<std::string>& rules, const ClientIdentity& client) {
  const absl::StatusOr<AccessRules> parsed = AccessRules::Parse(rules);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() && parsed->Allows(client);
}
bool AllowsName(const std::vector<std::string>& rules, const std::string& name) {
  return Allows(rules, {.distinguished_name = name, .psk_user = ""});
}
bool AllowsUser(const std::vector<std::string>& rules, const std::string& user) {
  return Allows(rules, {.distinguished_name = "", .psk_user = user});
}

TEST(AccessRulesTest, WithoutRulesEverybodyIsLetIn) {
  EXPECT_TRUE(Allows({}, {}));
  EXPECT_TRUE(AllowsName({}, "CN=agent"));
  EXPECT_TRUE(AllowsUser({}, "alice"));
}

TEST(AccessRulesTest, WhomNoRuleDescribesIsRefused) {
  EXPECT_TRUE(AllowsName({"dn:CN=agent,O=Example"}, "CN=agent,O=Example"));
  EXPECT_FALSE(AllowsName({"dn:CN=agent,O=Example"}, "CN=agent"));
  EXPECT_FALSE(AllowsName({"dn:CN=agent"}, "CN=agent,O=Example"));
  EXPECT_FALSE(Allows({"dn:**"}, {}));
  EXPECT_FALSE(Allows({"psk:*"}, {}));
}

TEST(AccessRulesTest, TheFirstRuleThatDescribesTheClientDecides) {
  const std::vector<std::string> rules = {"!dn:CN=agent-7,O=Example", "dn:CN=agent-*,O=Example", "!psk:m*",
                                          "*"};
  EXPECT_FALSE(AllowsName(rules, "CN=agent-7,O=Example"));
  EXPECT_TRUE(AllowsName(rules, "CN=agent-8,O=Example"));
  EXPECT_TRUE(AllowsName(rules, "CN=somebody"));
  EXPECT_FALSE(AllowsUser(rules, "mallory"));
  EXPECT_TRUE(AllowsUser(rules, "alice"));
  EXPECT_TRUE(Allows(rules, {}));
  EXPECT_FALSE(Allows({"!*", "*"}, {}));
}

TEST(AccessRulesTest, WildcardsStayWithinAPart) {
  EXPECT_TRUE(AllowsName({"dn:CN=*,O=Example"}, "CN=agent,O=Example"));
  EXPECT_FALSE(AllowsName({"dn:CN=*,O=Example"}, "CN=agent,OU=Unit,O=Example"));
  EXPECT_TRUE(AllowsName({"dn:CN=a?c*"}, "CN=abcdef"));
  EXPECT_FALSE(AllowsName({"dn:CN=a?c*"}, "CN=acdef"));
  EXPECT_TRUE(AllowsName({"dn:CN=*a*b"}, "CN=xaxbxab"));
  EXPECT_TRUE(AllowsName({"dn:CN=*,**,C=DE"}, "CN=x,O=y,OU=z,C=DE"));
  EXPECT_TRUE(AllowsName({"dn:CN=*,**,C=DE"}, "CN=x,C=DE"));
  EXPECT_FALSE(AllowsName({"dn:CN=*,**,C=DE"}, "CN=x,O=y"));
  EXPECT_TRUE(AllowsName({"dn:**"}, "CN=x,O=y"));
}

// A client chooses its own common name, as far as the authority lets it.
TEST(AccessRulesTest, ACommaInANameAddsNoPart) {
  EXPECT_FALSE(AllowsName({"dn:CN=*,O=Example"}, "CN=x\\,O=Example"));
  EXPECT_FALSE(AllowsName({"dn:CN=*,O=Example"}, "CN=x\\,O=Example,O=Evil"));
  EXPECT_FALSE(AllowsName({"dn:**,O=Example"}, "CN=x\\,O=Example"));
  EXPECT_TRUE(AllowsName({"dn:CN=x\\,y"}, "CN=x\\,y"));
  EXPECT_FALSE(AllowsName({"dn:CN=x,y"}, "CN=x\\,y"));
  EXPECT_FALSE(AllowsName({"dn:CN=x\\\\,O=Example"}, "CN=x\\,O=Example"));
}

TEST(AccessRulesTest, AUserIsNoDistinguishedName) {
  EXPECT_FALSE(AllowsUser({"dn:CN=agent,O=Example"}, "CN=agent,O=Example"));
  EXPECT_FALSE(AllowsName({"psk:*"}, "CN=agent"));
  EXPECT_TRUE(AllowsUser({"psk:back*-?"}, "backup-1"));
}

TEST(AccessRulesTest, WhatIsNoRuleIsRefused) {
  for (const std::string text :
       {"", "!", "CN=agent", "dn:", "psk:", "!dn:", "x509:CN=a", "**", "dn:CN=a, O=b"}) {
    const absl::Status status = AccessRules::Parse({"*", text}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(status.message().find("'" + text + "'"), absl::string_view::npos) << status;
  }
  EXPECT_FALSE(AccessRules::Parse({"dn:" + std::string(1024, 'x')}).ok());
  EXPECT_FALSE(AccessRules::Parse(std::vector<std::string>(257, "*")).ok());
}

// No pattern is expensive.
TEST(AccessRulesTest, ManyStarsAgainstALongName) {
  std::string pattern = "dn:CN=";
  for (int i = 0; i < 500; ++i) pattern += "*a";
  EXPECT_FALSE(AllowsName({pattern + "b"}, "CN=" + std::string(60000, 'a')));
}

}  // namespace
}  // namespace berth::nbd
