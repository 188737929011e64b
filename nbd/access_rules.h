// AccessRules: which clients are let in, by what their certificate or their pre-shared key says of them.
//
// A rule is one of
//   dn:PATTERN    the distinguished name of the client's certificate, as RFC 4514 writes it:
//   "dn:CN=agent-*,O=Example".
//                 In a part between commas `*` stands for any characters and `?` for one; the part `**`
//                 stands for any parts, or none: "dn:CN=agent-*,**". No wildcard reaches from one part into
//                 the next, so a name that holds a comma cannot pretend to have more parts.
//   psk:PATTERN   the name of the pre-shared key's user, with `*` and `?`.
//   *             every client, also one without TLS or without a certificate.
// and with a `!` before it refuses whom it describes. The first rule that describes a client decides. Where
// none does, the client is refused; where there are no rules at all, everybody is let in.
#ifndef BERTH_NBD_ACCESS_RULES_H_
#define BERTH_NBD_ACCESS_RULES_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nbd/client_identity.h"

namespace berth::nbd {

// A value; immutable.
class AccessRules {
 public:
  // In all, of one list; each has at most kMaxSize bytes.
  static constexpr size_t kMaxRules = 256;
  static constexpr size_t kMaxSize = 1024;

  AccessRules() = default;

  // INVALID_ARGUMENT quotes the rule and says what would be one.
  static absl::StatusOr<AccessRules> Parse(const std::vector<std::string>& rules);

  bool Allows(const ClientIdentity& client) const;

 private:
  enum class Kind { kEverybody, kDistinguishedName, kPskUser };

  struct Rule {
    bool allow = true;
    Kind kind = Kind::kEverybody;
    std::vector<std::string> parts;  // Of the pattern.

    bool Describes(const ClientIdentity& client) const;
  };

  static absl::StatusOr<Rule> ParseRule(absl::string_view text);

  std::vector<Rule> rules_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_ACCESS_RULES_H_
