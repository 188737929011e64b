#include "control/berth_nbd/objects.h"

#include <fnmatch.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "image/secret/secret_source.h"

namespace berth::control {
namespace {

constexpr char kTypes[] =
    "secret, tls-creds-x509, tls-creds-psk, tls-creds-anon, throttle-group, authz-simple, authz-list or "
    "authz-list-file";

absl::Status Wrong(const std::string& id, absl::string_view text) {
  return absl::InvalidArgumentError(absl::StrCat("--object with the id '", id.substr(0, 200), "': ", text));
}

absl::Status About(const std::string& id, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("--object with the id '", id.substr(0, 200), "': ", status.message()));
}

// A text that must be there.
absl::StatusOr<std::string> Needed(const OptionTree& object, const std::string& key) {
  absl::StatusOr<std::optional<std::string>> text = object.Text(key);
  if (!text.ok()) return text.status();
  if (!text->has_value() || (*text)->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(object.Name(key), " is missing"));
  }
  return **text;
}

struct ListRule {
  std::string match;
  bool glob = false;
  bool allow = false;
};

absl::StatusOr<bool> Policy(const OptionTree& tree, bool otherwise) {
  absl::StatusOr<std::optional<std::string>> text = tree.Text("policy");
  if (!text.ok()) return text.status();
  if (!text->has_value()) return otherwise;
  if (**text == "allow") return true;
  if (**text == "deny") return false;
  return absl::InvalidArgumentError(
      absl::StrCat(tree.Name("policy"), " is '", (*text)->substr(0, 200), "'; it must be allow or deny"));
}

absl::StatusOr<ListRule> ParseRule(const OptionTree& tree) {
  ListRule rule;
  absl::StatusOr<std::string> match = Needed(tree, "match");
  if (!match.ok()) return match.status();
  rule.match = *std::move(match);
  absl::StatusOr<bool> policy = Policy(tree, false);
  if (!policy.ok()) return policy.status();
  rule.allow = *policy;
  absl::StatusOr<std::optional<std::string>> format = tree.Text("format");
  if (!format.ok()) return format.status();
  const std::string name = format->value_or("exact");
  if (name != "exact" && name != "glob") {
    return absl::InvalidArgumentError(
        absl::StrCat(tree.Name("format"), " is '", name.substr(0, 200), "'; it must be exact or glob"));
  }
  rule.glob = name == "glob";
  if (absl::Status status = tree.CheckAllRead(); !status.ok()) return status;
  return rule;
}

// What a client is called by rules.
const std::string& NameOf(const nbd::ClientIdentity& client) {
  return client.distinguished_name.empty() ? client.psk_user : client.distinguished_name;
}

// `policy` holds for whom no rule describes.
absl::StatusOr<Authorization> ParseList(const OptionTree& tree) {
  absl::StatusOr<bool> policy = Policy(tree, false);
  if (!policy.ok()) return policy.status();
  std::vector<ListRule> rules;
  if (const OptionTree* listed = tree.Child("rules")) {
    for (size_t i = 0; i < listed->children().size(); ++i) {
      const OptionTree* child = listed->Child(absl::StrCat(i));
      if (child == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat(listed->Name(absl::StrCat(i)), " is missing"));
      }
      absl::StatusOr<ListRule> rule = ParseRule(*child);
      if (!rule.ok()) return rule.status();
      rules.push_back(*std::move(rule));
    }
  }
  return Authorization([rules = std::move(rules), otherwise = *policy](const nbd::ClientIdentity& client) {
    const std::string& name = NameOf(client);
    if (name.empty()) return false;
    for (const ListRule& rule : rules) {
      if (rule.glob ? fnmatch(rule.match.c_str(), name.c_str(), 0) == 0 : rule.match == name)
        return rule.allow;
    }
    return otherwise;
  });
}

absl::StatusOr<Authorization> ParseListFile(const OptionTree& object) {
  absl::StatusOr<std::string> path = Needed(object, "filename");
  if (!path.ok()) return path.status();
  if (absl::StatusOr<bool> refresh = object.Switch("refresh", true); !refresh.ok()) return refresh.status();
  const absl::StatusOr<Secret> text = ReadSecretFile(*path);
  if (!text.ok()) return text.status();
  const absl::StatusOr<OptionTree> tree = OptionTree::Parse(absl::StrCat("json:", text->bytes()), "");
  if (!tree.ok())
    return absl::InvalidArgumentError(absl::StrCat("\"", *path, "\": ", tree.status().message()));
  absl::StatusOr<Authorization> list = ParseList(*tree);
  if (!list.ok())
    return absl::InvalidArgumentError(absl::StrCat("\"", *path, "\": ", list.status().message()));
  if (absl::Status status = tree->CheckAllRead(); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", *path, "\": ", status.message()));
  }
  return list;
}

absl::StatusOr<Authorization> ParseAuthorization(const std::string& type, const OptionTree& object) {
  if (type == "authz-list") return ParseList(object);
  if (type == "authz-list-file") return ParseListFile(object);
  absl::StatusOr<std::string> identity = Needed(object, "identity");
  if (!identity.ok()) return identity.status();
  return Authorization([identity = *std::move(identity)](const nbd::ClientIdentity& client) {
    return NameOf(client) == identity;
  });
}

// The limits of a throttle-group; its bursts and its separate limits of reads and writes have no counterpart.
absl::StatusOr<RateLimits> ParseLimits(const OptionTree& object) {
  RateLimits limits;
  const OptionTree* nested = object.Child("limits");
  const OptionTree& tree = nested != nullptr ? *nested : object;
  const std::string prefix = nested != nullptr ? "" : "x-";
  absl::StatusOr<std::optional<uint64_t>> bytes = tree.Bytes(prefix + "bps-total");
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<std::optional<uint64_t>> operations = tree.Bytes(prefix + "iops-total");
  if (!operations.ok()) return operations.status();
  limits.bytes_per_second = bytes->value_or(0);
  limits.operations_per_second = operations->value_or(0);
  if (nested != nullptr) {
    if (absl::Status status = nested->CheckAllRead(); !status.ok()) return status;
  }
  return limits;
}

// What can be wrong with it before its files are read.
absl::Status CheckCredentials(const std::string& type, const OptionTree& object) {
  const bool anonymous = type == "tls-creds-anon";
  absl::StatusOr<std::optional<std::string>> directory = object.Text("dir");
  if (!directory.ok()) return directory.status();
  if (!anonymous && directory->value_or("").empty()) return absl::InvalidArgumentError("dir is missing");
  absl::StatusOr<std::optional<std::string>> endpoint = object.Text("endpoint");
  if (!endpoint.ok()) return endpoint.status();
  const std::string end = endpoint->value_or("client");
  if (end != "client" && end != "server") {
    return absl::InvalidArgumentError(
        absl::StrCat("endpoint is '", end.substr(0, 200), "'; it must be server or client"));
  }
  if (absl::StatusOr<bool> verify = object.Switch("verify-peer", true); !verify.ok()) return verify.status();
  if (anonymous) return absl::OkStatus();
  if (type == "tls-creds-psk") return object.Text("username").status();
  absl::StatusOr<std::optional<std::string>> password = object.Text("passwordid");
  if (!password.ok()) return password.status();
  if (password->has_value()) {
    return absl::UnimplementedError(
        "passwordid: keys under a passphrase are not read; decrypt the key with "
        "openssl pkey and protect it by its file's mode");
  }
  return absl::OkStatus();
}

// What a secret is made of.
absl::StatusOr<Secret> ReadBytes(const OptionTree& object) {
  absl::StatusOr<std::optional<std::string>> data = object.Text("data");
  if (!data.ok()) return data.status();
  absl::StatusOr<std::optional<std::string>> file = object.Text("file");
  if (!file.ok()) return file.status();
  if (data->has_value() == file->has_value()) {
    return absl::InvalidArgumentError("a secret has either data or file");
  }
  absl::StatusOr<std::optional<std::string>> format = object.Text("format");
  if (!format.ok()) return format.status();
  const std::string form = format->value_or("raw");
  if (form != "raw" && form != "base64") {
    return absl::InvalidArgumentError(
        absl::StrCat("format is '", form.substr(0, 200), "'; it must be raw or base64"));
  }
  absl::StatusOr<Secret> bytes = data->has_value() ? Secret::FromBytes(**data) : ReadSecretFile(**file);
  if (!bytes.ok()) return bytes;
  return form == "raw" ? bytes : Secret::FromBase64(bytes->bytes());
}

}  // namespace

absl::StatusOr<Objects> Objects::Parse(const std::vector<std::string>& definitions) {
  Objects objects;
  for (const std::string& definition : definitions) {
    absl::StatusOr<OptionTree> object = OptionTree::Parse(definition, "qom-type");
    if (!object.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--object: ", object.status().message()));
    }
    if (absl::Status status = objects.Add(*object); !status.ok()) return status;
  }
  return objects;
}

absl::Status Objects::Add(const OptionTree& object) {
  const absl::StatusOr<std::optional<std::string>> type = object.Text("qom-type");
  const absl::StatusOr<std::string> id = Needed(object, "id");
  if (!type.ok() || !type->has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("--object has no type; it must be ", kTypes));
  }
  if (!id.ok())
    return absl::InvalidArgumentError(absl::StrCat("--object ", (*type)->substr(0, 200), ": id is missing"));
  if (credentials_.count(*id) + authorizations_.count(*id) + limits_.count(*id) + secrets_.count(*id) != 0) {
    return Wrong(*id, "another object has this id already");
  }
  const std::string& name = **type;
  absl::Status status;
  if (name == "secret") {
    status = AddSecret(*id, object);
  } else if (name == "throttle-group") {
    absl::StatusOr<RateLimits> limits = ParseLimits(object);
    status = limits.status();
    if (limits.ok()) limits_.emplace(*id, *limits);
  } else if (name == "tls-creds-x509" || name == "tls-creds-psk" || name == "tls-creds-anon") {
    status = CheckCredentials(name, object);
    if (status.ok()) credentials_.emplace(*id, object);
  } else if (name == "authz-simple" || name == "authz-list" || name == "authz-list-file") {
    absl::StatusOr<Authorization> authorization = ParseAuthorization(name, object);
    status = authorization.status();
    if (authorization.ok()) authorizations_.emplace(*id, *std::move(authorization));
  } else {
    return Wrong(*id, absl::StrCat("the type is '", name.substr(0, 200), "'; it must be ", kTypes));
  }
  if (status.ok()) status = object.CheckAllRead();
  return status.ok() ? status : About(*id, status);
}

absl::Status Objects::AddSecret(const std::string& id, const OptionTree& object) {
  absl::StatusOr<Secret> secret = ReadBytes(object);
  if (!secret.ok()) return secret.status();
  absl::StatusOr<std::optional<std::string>> key_id = object.Text("keyid");
  if (!key_id.ok()) return key_id.status();
  absl::StatusOr<std::optional<std::string>> iv = object.Text("iv");
  if (!iv.ok()) return iv.status();
  if (key_id->has_value() != iv->has_value()) return absl::InvalidArgumentError("keyid and iv go together");
  if (key_id->has_value()) {
    absl::StatusOr<Secret> key = FindSecret(**key_id);
    if (!key.ok()) return key.status();
    absl::StatusOr<Secret> start = Secret::FromBase64(**iv);
    if (!start.ok()) return absl::InvalidArgumentError(absl::StrCat("iv: ", start.status().message()));
    secret = DecryptSecret(*secret, *key, *start);
    if (!secret.ok()) return secret.status();
  }
  secrets_.emplace(id, *std::move(secret));
  return absl::OkStatus();
}

absl::StatusOr<Secret> Objects::FindSecret(const std::string& id) const {
  const auto found = secrets_.find(id);
  if (found == secrets_.end()) {
    return absl::NotFoundError(
        absl::StrCat("there is no secret with the id '", id.substr(0, 200), "' before"));
  }
  return found->second;
}

absl::StatusOr<RateLimits> Objects::FindLimits(const std::string& id) const {
  const auto found = limits_.find(id);
  if (found == limits_.end()) {
    return absl::NotFoundError(
        absl::StrCat("there is no throttle-group with the id '", id.substr(0, 200), "'"));
  }
  return found->second;
}

absl::StatusOr<Authorization> Objects::FindAuthorization(const std::string& id) const {
  const auto found = authorizations_.find(id);
  if (found == authorizations_.end()) {
    return absl::NotFoundError(
        absl::StrCat("--tls-authz is '", id.substr(0, 200), "'; no authz object has this id"));
  }
  return found->second;
}

absl::StatusOr<std::shared_ptr<const nbd::TlsCredentials>> Objects::Credentials(const std::string& id,
                                                                                bool server) const {
  const auto found = credentials_.find(id);
  if (found == credentials_.end()) {
    return absl::NotFoundError(
        absl::StrCat("--tls-creds is '", id.substr(0, 200), "'; no tls-creds object has this id"));
  }
  // All of it was checked when the object was added.
  const OptionTree& object = found->second;
  const absl::StatusOr<std::optional<std::string>> endpoint = object.Text("endpoint");
  const std::string needed = server ? "server" : "client";
  if (endpoint->value_or("client") != needed) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tls-creds is '", id.substr(0, 200),
                     "', which is not for this end; its object must say endpoint=", needed));
  }
  const bool anonymous = **object.Text("qom-type") == "tls-creds-anon";
  const std::string directory = object.Text("dir")->value_or("");
  const bool verify = *object.Switch("verify-peer", true);
  const bool psk = **object.Text("qom-type") == "tls-creds-psk";
  const std::string keys = absl::StrCat(directory, "/keys.psk");
  if (server) {
    nbd::ServerTlsFiles files;
    files.anonymous = anonymous;
    if (!anonymous) (psk ? files.psk : files.certificates) = psk ? keys : directory;
    files.verify_client = !anonymous && !psk && verify;
    return nbd::TlsCredentials::ForServer(files);
  }
  nbd::ClientTlsFiles files;
  files.anonymous = anonymous;
  if (!anonymous) (psk ? files.psk : files.certificates) = psk ? keys : directory;
  if (psk) files.psk_user = object.Text("username")->value_or("qemu");
  files.verify_server = verify;
  return nbd::TlsCredentials::ForClient(files);
}

}  // namespace berth::control
