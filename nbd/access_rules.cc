#include "nbd/access_rules.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/types/span.h"
#include "nbd/protocol_string.h"

namespace berth::nbd {
namespace {

constexpr absl::string_view kAnyParts = "**";

// Iterative, so that no pattern takes more than pattern times text.
bool Matches(absl::string_view pattern, absl::string_view text) {
  size_t p = 0, t = 0, star = absl::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != absl::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

// The same, with parts in the place of characters and `**` in the place of `*`.
bool MatchesParts(absl::Span<const std::string> pattern, absl::Span<const std::string> parts) {
  size_t p = 0, t = 0, star = absl::string_view::npos, resume = 0;
  while (t < parts.size()) {
    if (p < pattern.size() && pattern[p] == kAnyParts) {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && Matches(pattern[p], parts[t])) {
      ++p;
      ++t;
    } else if (star != absl::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == kAnyParts) ++p;
  return p == pattern.size();
}

// RFC 4514: parts are separated by commas that no backslash precedes.
std::vector<std::string> Parts(absl::string_view name) {
  std::vector<std::string> parts(1);
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] == ',') {
      parts.emplace_back();
      continue;
    }
    parts.back() += name[i];
    if (name[i] == '\\' && i + 1 < name.size()) parts.back() += name[++i];
  }
  return parts;
}

}  // namespace

absl::StatusOr<AccessRules::Rule> AccessRules::ParseRule(absl::string_view text) {
  const auto error = [text](absl::string_view problem) {
    return absl::InvalidArgumentError(absl::StrCat("rule ", Quoted(text), " ", problem));
  };
  if (text.size() > kMaxSize) return error(absl::StrCat("has more than ", kMaxSize, " bytes"));
  Rule rule;
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, "!")) rule.allow = false;
  if (rest == "*") return rule;
  if (absl::ConsumePrefix(&rest, "dn:")) {
    rule.kind = Kind::kDistinguishedName;
    rule.parts = Parts(rest);
    for (const std::string& part : rule.parts) {
      // "CN=a, O=b" is what many programs print, and would match nothing.
      if (!part.empty() && part[0] == ' ')
        return error("has a space after a comma; write dn:CN=agent,O=Example");
    }
  } else if (absl::ConsumePrefix(&rest, "psk:")) {
    rule.kind = Kind::kPskUser;
    rule.parts = {std::string(rest)};
  } else {
    return error("is none; write dn:PATTERN, psk:PATTERN or *, or one of these after a !");
  }
  if (rest.empty()) return error("has an empty pattern");
  return rule;
}

absl::StatusOr<AccessRules> AccessRules::Parse(const std::vector<std::string>& rules) {
  if (rules.size() > kMaxRules) {
    return absl::InvalidArgumentError(absl::StrCat(rules.size(), " rules; ", kMaxRules, " are the most"));
  }
  AccessRules parsed;
  for (const std::string& text : rules) {
    absl::StatusOr<Rule> rule = ParseRule(text);
    if (!rule.ok()) return rule.status();
    parsed.rules_.push_back(*std::move(rule));
  }
  return parsed;
}

bool AccessRules::Rule::Describes(const ClientIdentity& client) const {
  switch (kind) {
    case Kind::kEverybody:
      return true;
    case Kind::kDistinguishedName:
      return !client.distinguished_name.empty() && MatchesParts(parts, Parts(client.distinguished_name));
    case Kind::kPskUser:
      return !client.psk_user.empty() && Matches(parts[0], client.psk_user);
  }
  return false;
}

bool AccessRules::Allows(const ClientIdentity& client) const {
  for (const Rule& rule : rules_) {
    if (rule.Describes(client)) return rule.allow;
  }
  return rules_.empty();
}

}  // namespace berth::nbd
