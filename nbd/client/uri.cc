#include "nbd/client/uri.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "nbd/address.h"
#include "nbd/protocol_string.h"
#include "nbd/wire.h"

namespace berth::nbd {
namespace {

constexpr char kSchemes[] = "nbd, nbds, nbd+unix, nbds+unix, nbd+vsock or nbds+vsock";

// Bytes that RFC 3986 lets stand in a query's value as they are, '&' and '=' left out, and '%' for escapes.
bool IsPlain(char byte) {
  return absl::ascii_isalnum(static_cast<unsigned char>(byte)) ||
         absl::StrContains("-._~!$'()*+,;:@/?", byte);
}

std::string Escaped(absl::string_view text, absl::string_view plain_beside_alnum) {
  std::string escaped;
  for (const char byte : text) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(byte)) ||
        absl::StrContains(plain_beside_alnum, byte)) {
      escaped += byte;
    } else {
      absl::StrAppend(&escaped, "%", absl::Hex(static_cast<uint8_t>(byte), absl::kZeroPad2));
    }
  }
  return escaped;
}

std::optional<uint32_t> Number(absl::string_view text, uint32_t maximum) {
  uint32_t value;
  const bool digits = !text.empty() && std::all_of(text.begin(), text.end(), absl::ascii_isdigit);
  if (!digits || !absl::SimpleAtoi(text, &value) || value > maximum) return std::nullopt;
  return value;
}

class Parser {
 public:
  explicit Parser(absl::string_view text) : text_(text) {}

  absl::StatusOr<Uri> Parse() {
    if (text_.size() > Uri::kMaxSize) {
      return Error(absl::StrCat("it has ", text_.size(), " bytes, and at most ", Uri::kMaxSize, " are read"));
    }
    absl::string_view rest = text_;
    absl::Status status = CheckBytes();
    if (status.ok()) status = TakeScheme(&rest);
    if (status.ok()) status = TakeAuthority(&rest);
    if (status.ok()) status = TakePath(&rest);
    if (status.ok()) status = TakeQuery(rest);
    if (status.ok()) status = CheckWhole();
    if (!status.ok()) return status;
    return std::move(uri_);
  }

 private:
  absl::Status Error(absl::string_view reason) const {
    return absl::InvalidArgumentError(absl::StrCat("NBD URI ", Quoted(text_), ": ", reason));
  }

  absl::Status CheckBytes() const {
    for (const char byte : text_) {
      if (IsPlain(byte) || absl::StrContains("%#[]=&", byte)) continue;
      return Error(absl::StrCat("the byte ", Quoted(absl::string_view(&byte, 1)), " is written %",
                                absl::Hex(static_cast<uint8_t>(byte), absl::kZeroPad2), " in a URI"));
    }
    if (absl::StrContains(text_, '#')) {
      return Error("a fragment means nothing here; a # in a name is written %23");
    }
    return absl::OkStatus();
  }

  // `part` says what `text` is.
  absl::StatusOr<std::string> Decoded(absl::string_view part, absl::string_view text) const {
    std::string decoded;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '%') {
        decoded += text[i];
        continue;
      }
      const absl::string_view digits = text.substr(i + 1, 2);
      if (digits.size() != 2 || !std::all_of(digits.begin(), digits.end(), absl::ascii_isxdigit)) {
        return Error(absl::StrCat(part, ": two hexadecimal digits belong after a %, not '", digits,
                                  "'; the % itself is written %25"));
      }
      decoded += absl::HexStringToBytes(digits);
      i += 2;
    }
    return decoded;
  }

  absl::Status TakeScheme(absl::string_view* rest) {
    const size_t end = text_.find(':');
    if (end == absl::string_view::npos) {
      return Error(absl::StrCat("there is no scheme; it begins with ", kSchemes, ", and a colon"));
    }
    const std::string scheme = absl::AsciiStrToLower(text_.substr(0, end));
    absl::string_view kind = scheme;
    uri_.tls = absl::StartsWith(scheme, "nbds");
    const bool is_nbd = absl::ConsumePrefix(&kind, uri_.tls ? "nbds" : "nbd");
    if (is_nbd && kind == "+unix") {
      uri_.family = Uri::Family::kUnix;
    } else if (is_nbd && kind == "+vsock") {
      uri_.family = Uri::Family::kVsock;
    } else if (!is_nbd || !kind.empty()) {
      return Error(absl::StrCat("the scheme '", scheme, "' is none of NBD's, which are ", kSchemes));
    }
    scheme_ = scheme;
    *rest = text_.substr(end + 1);
    return absl::OkStatus();
  }

  absl::Status TakeAuthority(absl::string_view* rest) {
    if (uri_.family == Uri::Family::kUnix) uri_.host.clear();
    if (!absl::ConsumePrefix(rest, "//")) {
      if (rest->empty() || absl::StrContains("/?", rest->front())) return absl::OkStatus();
      return Error(absl::StrCat("'//' belongs after ", scheme_, ":, as in nbd://HOST:PORT/NAME"));
    }
    absl::string_view authority = rest->substr(0, rest->find_first_of("/?"));
    rest->remove_prefix(authority.size());
    if (const size_t at = authority.find('@'); at != absl::string_view::npos) {
      if (absl::Status status = TakeUser(authority.substr(0, at)); !status.ok()) return status;
      authority.remove_prefix(at + 1);
    }
    if (uri_.family == Uri::Family::kUnix) {
      if (authority.empty()) return absl::OkStatus();
      return Error(absl::StrCat("'", authority, "' is a host, and a Unix socket has none; write ", scheme_,
                                ":///NAME?socket=PATH"));
    }
    return TakeHostAndPort(authority);
  }

  absl::Status TakeUser(absl::string_view text) {
    if (absl::StrContains(text, ':')) {
      return Error("the user name: NBD has no passwords; write a colon of the name as %3a");
    }
    absl::StatusOr<std::string> name = Decoded("the user name", text);
    if (!name.ok()) return name.status();
    if (name->empty()) return Error("the user name before @ is empty");
    return SetUser(*std::move(name));
  }

  absl::Status SetUser(std::string name) {
    if (!IsProtocolString(name)) return Error("the user name is no text in UTF-8");
    if (!uri_.tls_username.empty() && uri_.tls_username != name) {
      return Error(absl::StrCat("it has two user names, ", Quoted(uri_.tls_username), " and ", Quoted(name)));
    }
    uri_.tls_username = std::move(name);
    return absl::OkStatus();
  }

  absl::Status TakeHostAndPort(absl::string_view text) {
    absl::string_view host = text, port;
    bool has_port = false;
    if (absl::ConsumePrefix(&text, "[")) {
      const size_t end = text.find(']');
      if (end == absl::string_view::npos) return Error("the host: its bracket is not closed");
      host = text.substr(0, end);
      text.remove_prefix(end + 1);
      has_port = absl::ConsumePrefix(&text, ":");
      if (!has_port && !text.empty()) {
        return Error(
            absl::StrCat("the port: ':PORT' or nothing belongs after the bracket, not '", text, "'"));
      }
      port = text;
      in6_addr ignored;
      if (uri_.family != Uri::Family::kTcp || inet_pton(AF_INET6, std::string(host).c_str(), &ignored) != 1) {
        return Error(absl::StrCat("the host: '", host, "' in brackets is no IPv6 address"));
      }
      uri_.host = std::string(host);
    } else {
      if (std::count(host.begin(), host.end(), ':') > 1) {
        return Error(absl::StrCat("the host: '", host, "' has several colons; an IPv6 address is written [",
                                  host, "]"));
      }
      const size_t colon = host.find(':');
      has_port = colon != absl::string_view::npos;
      if (has_port) port = host.substr(colon + 1);
      if (absl::Status status = SetHost(host.substr(0, colon)); !status.ok()) return status;
    }
    // RFC 3986, 3.2.3: an empty port is the default.
    if (!has_port || port.empty()) return absl::OkStatus();
    const bool vsock = uri_.family == Uri::Family::kVsock;
    const std::optional<uint32_t> number = Number(port, vsock ? UINT32_MAX - 1 : UINT16_MAX);
    if (!number.has_value() || *number == 0) {
      return Error(absl::StrCat("the port: '", port, "' is no number from 1 to ",
                                vsock ? UINT32_MAX - 1 : UINT16_MAX));
    }
    uri_.port = *number;
    return absl::OkStatus();
  }

  absl::Status SetHost(absl::string_view text) {
    if (text.empty()) return absl::OkStatus();
    absl::StatusOr<std::string> host = Decoded("the host", text);
    if (!host.ok()) return host.status();
    if (uri_.family == Uri::Family::kVsock) {
      const std::optional<uint32_t> cid = Number(*host, UINT32_MAX - 1);
      if (!cid.has_value()) {
        return Error(absl::StrCat("the host: ", Quoted(*host), " is no context identifier; with vsock it is ",
                                  "a number, 2 for the host of a virtual machine"));
      }
      uri_.cid = *cid;
      return absl::OkStatus();
    }
    const auto is_host_byte = [](unsigned char byte) {
      return absl::ascii_isalnum(byte) || byte == '.' || byte == '-' || byte == '_';
    };
    if (!std::all_of(host->begin(), host->end(), is_host_byte)) {
      return Error(absl::StrCat("the host: ", Quoted(*host), " is no host name"));
    }
    uri_.host = *std::move(host);
    return absl::OkStatus();
  }

  absl::Status TakePath(absl::string_view* rest) {
    absl::string_view path = rest->substr(0, rest->find('?'));
    rest->remove_prefix(path.size());
    absl::ConsumePrefix(&path, "/");
    absl::StatusOr<std::string> name = Decoded("the export name", path);
    if (!name.ok()) return name.status();
    if (!IsProtocolString(*name)) {
      return Error(absl::StrCat("the export name ", Quoted(*name), " is no text in UTF-8 without NUL"));
    }
    if (name->size() > kMaxStringSize) {
      return Error(absl::StrCat("the export name has ", name->size(), " bytes, and at most ", kMaxStringSize,
                                " are allowed"));
    }
    uri_.export_name = *std::move(name);
    return absl::OkStatus();
  }

  absl::Status TakeQuery(absl::string_view rest) {
    absl::ConsumePrefix(&rest, "?");
    while (!rest.empty()) {
      const absl::string_view parameter = rest.substr(0, rest.find('&'));
      rest.remove_prefix(std::min(rest.size(), parameter.size() + 1));
      if (parameter.empty()) continue;
      const size_t equals = std::min(parameter.find('='), parameter.size());
      absl::StatusOr<std::string> key = Decoded("a parameter's name", parameter.substr(0, equals));
      if (!key.ok()) return key.status();
      absl::string_view value = parameter.substr(equals);
      absl::ConsumePrefix(&value, "=");
      absl::StatusOr<std::string> decoded = Decoded(absl::StrCat("the parameter ", *key, "="), value);
      if (!decoded.ok()) return decoded.status();
      if (absl::Status status = SetParameter(*key, *std::move(decoded)); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status SetParameter(const std::string& key, std::string value) {
    if (std::find(seen_.begin(), seen_.end(), key) != seen_.end()) {
      return Error(absl::StrCat("the parameter ", Quoted(key), " is there twice"));
    }
    seen_.push_back(key);
    const std::pair<absl::string_view, std::string*> texts[] = {{"socket", &uri_.socket},
                                                                {"tls-certificates", &uri_.tls_certificates},
                                                                {"tls-psk-file", &uri_.tls_psk_file},
                                                                {"tls-hostname", &uri_.tls_hostname}};
    const auto* text = std::find_if(std::begin(texts), std::end(texts),
                                    [&key](const auto& candidate) { return candidate.first == key; });
    const bool known =
        text != std::end(texts) || key == "tls-type" || key == "tls-username" || key == "tls-verify-peer";
    if (!known) {
      return Error(absl::StrCat("the parameter ", Quoted(key),
                                " is not known; there are socket, tls-type, tls-certificates, tls-psk-file, "
                                "tls-username, tls-verify-peer and tls-hostname"));
    }
    if (key != "socket" && !uri_.tls) {
      return Error(absl::StrCat("the parameter ", key, "= needs TLS, and ", scheme_, ": has none; write nbds",
                                scheme_.substr(3), ":"));
    }
    if (value.empty()) return Error(absl::StrCat("the parameter ", key, "= has no value"));
    if (key == "socket") return SetSocket(std::move(value));
    if (key == "tls-type") return SetTlsType(value);
    if (key == "tls-username") return SetUser(std::move(value));
    if (key == "tls-verify-peer") return SetVerifyPeer(value);
    if (absl::StrContains(value, '\0')) return Error(absl::StrCat("the parameter ", key, "= holds a NUL"));
    *text->second = std::move(value);
    return absl::OkStatus();
  }

  absl::Status SetSocket(std::string value) {
    if (uri_.family != Uri::Family::kUnix) {
      return Error(absl::StrCat("the parameter socket= is for Unix sockets; write ",
                                uri_.tls ? "nbds" : "nbd", "+unix:///NAME?socket=PATH"));
    }
    const bool abstract = value[0] == '\0';
    if (!abstract && absl::StrContains(value, '\0')) {
      return Error(
          "the parameter socket= holds a NUL, which can only be the first byte of an abstract socket");
    }
    if (abstract && value.size() == 1) return Error("the parameter socket=: no abstract name follows %00");
    const size_t maximum = Address::kMaxUnixPath + (abstract ? 1 : 0);
    if (value.size() > maximum) {
      return Error(absl::StrCat("the parameter socket= has ", value.size(),
                                " bytes and a Unix socket's path ", "at most ", maximum,
                                "; use a shorter one"));
    }
    uri_.socket = std::move(value);
    return absl::OkStatus();
  }

  absl::Status SetTlsType(absl::string_view value) {
    if (value == "anon") {
      uri_.tls_type = Uri::TlsType::kAnonymous;
    } else if (value == "x509") {
      uri_.tls_type = Uri::TlsType::kX509;
    } else if (value == "psk") {
      uri_.tls_type = Uri::TlsType::kPsk;
    } else {
      return Error(
          absl::StrCat("the parameter tls-type=: ", Quoted(value), " is none of anon, x509 and psk"));
    }
    return absl::OkStatus();
  }

  absl::Status SetVerifyPeer(absl::string_view value) {
    if (value != "0" && value != "1") {
      return Error(absl::StrCat("the parameter tls-verify-peer=: ", Quoted(value), " is neither 0 nor 1"));
    }
    uri_.tls_verify_peer = value == "1";
    return absl::OkStatus();
  }

  absl::Status CheckWhole() const {
    if (uri_.family == Uri::Family::kUnix && uri_.socket.empty()) {
      return Error("the parameter socket= is missing, the path of the Unix socket");
    }
    if (!uri_.tls && !uri_.tls_username.empty()) {
      return Error(absl::StrCat("the user name ", Quoted(uri_.tls_username), " is TLS's, and ", scheme_,
                                ": has none; write nbds", scheme_.substr(3), ":"));
    }
    if (!uri_.tls_psk_file.empty() && !uri_.tls_certificates.empty()) {
      return Error("tls-psk-file= and tls-certificates= exclude each other");
    }
    if (uri_.tls_type == Uri::TlsType::kPsk && uri_.tls_psk_file.empty()) {
      return Error("tls-type=psk needs tls-psk-file=");
    }
    if (uri_.tls_type.has_value() && *uri_.tls_type != Uri::TlsType::kPsk && !uri_.tls_psk_file.empty()) {
      return Error("tls-psk-file= is for tls-type=psk alone");
    }
    if (uri_.tls_type == Uri::TlsType::kAnonymous && !uri_.tls_certificates.empty()) {
      return Error("tls-certificates= is for tls-type=x509 alone");
    }
    return absl::OkStatus();
  }

  const absl::string_view text_;
  std::string scheme_;
  std::vector<std::string> seen_;
  Uri uri_;
};

}  // namespace

absl::StatusOr<Uri> Uri::Parse(absl::string_view text) { return Parser(text).Parse(); }

std::string Uri::ToString() const {
  std::string text = tls ? "nbds" : "nbd";
  if (family != Family::kTcp) text += family == Family::kUnix ? "+unix" : "+vsock";
  text += "://";
  if (!tls_username.empty()) absl::StrAppend(&text, Escaped(tls_username, "-._~"), "@");
  if (family == Family::kTcp) {
    const bool ipv6 = absl::StrContains(host, ':');
    absl::StrAppend(&text, ipv6 ? "[" : "", host, ipv6 ? "]" : "");
  } else if (family == Family::kVsock) {
    absl::StrAppend(&text, cid);
  }
  if (family != Family::kUnix && port != kDefaultPort) absl::StrAppend(&text, ":", port);
  absl::StrAppend(&text, "/", Escaped(export_name, "-._~/"));

  char separator = '?';
  const auto add = [&text, &separator](absl::string_view key, absl::string_view value) {
    if (value.empty()) return;
    absl::StrAppend(&text, absl::string_view(&separator, 1), key, "=", Escaped(value, "-._~/"));
    separator = '&';
  };
  add("socket", socket);
  if (tls_type.has_value()) {
    add("tls-type", *tls_type == TlsType::kAnonymous ? "anon" : *tls_type == TlsType::kX509 ? "x509" : "psk");
  }
  add("tls-certificates", tls_certificates);
  add("tls-psk-file", tls_psk_file);
  add("tls-hostname", tls_hostname);
  if (tls_verify_peer.has_value()) add("tls-verify-peer", *tls_verify_peer ? "1" : "0");
  return text;
}

}  // namespace berth::nbd
