#include "control/berth_nbd/export_list.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "control/berth_nbd/one_line.h"
#include "image/io/blocking_pool.h"
#include "image/io/reactor_pool.h"
#include "nbd/client/dial.h"
#include "nbd/client/uri.h"
#include "nbd/wire.h"
#include "nlohmann/json.hpp"

namespace berth::control {
namespace {

struct FlagName {
  uint16_t flag;
  const char* name;
};

constexpr FlagName kFlagNames[] = {
    {nbd::kFlagReadOnly, "readonly"},
    {nbd::kFlagSendFlush, "flush"},
    {nbd::kFlagSendFua, "fua"},
    {nbd::kFlagRotational, "rotational"},
    {nbd::kFlagSendTrim, "trim"},
    {nbd::kFlagSendWriteZeroes, "zeroes"},
    {nbd::kFlagSendDf, "df"},
    {nbd::kFlagCanMultiConn, "multi"},
    {nbd::kFlagSendResize, "resize"},
    {nbd::kFlagSendCache, "cache"},
    {nbd::kFlagSendFastZero, "fast-zero"},
    {nbd::kFlagBlockStatusPayload, "block-status-payload"},
};

nbd::Uri ServerOf(const CommandLine& line) {
  nbd::Uri uri;
  if (line.socket.empty()) {
    uri.host = line.bind.value_or("0.0.0.0");
    uri.port = line.port.value_or(nbd::Uri::kDefaultPort);
  } else {
    uri.family = nbd::Uri::Family::kUnix;
    uri.socket = line.socket;
  }
  return uri;
}

}  // namespace

absl::StatusOr<std::vector<nbd::ListedExport>> FetchExports(
    const CommandLine& line, std::shared_ptr<const nbd::TlsCredentials> credentials) {
  absl::StatusOr<std::unique_ptr<ReactorPool>> reactors = ReactorPool::Create(1);
  if (!reactors.ok()) return reactors.status();
  BlockingPool pool(1);
  nbd::Uri uri = ServerOf(line);
  nbd::DialOptions options;
  if (credentials != nullptr) {
    uri.tls = true;
    uri.tls_hostname = line.tls_hostname;
    options.tls_credentials = std::move(credentials);
  }
  Reactor& reactor = (*reactors)->at(0);
  return RunOn(reactor, [&] { return nbd::ListExports(reactor, pool, uri, options); });
}

std::string ExportListText(const std::vector<nbd::ListedExport>& exports) {
  std::string text = absl::StrCat("exports available: ", exports.size(), "\n");
  for (const nbd::ListedExport& listed : exports) {
    const nbd::ExportInfo& info = listed.info;
    absl::StrAppend(&text, " export: '", OneLine(info.name), "'\n");
    if (!info.description.empty()) {
      absl::StrAppend(&text, "  description: ", OneLine(info.description), "\n");
    }
    if (info.Has(nbd::kFlagHasFlags)) {
      absl::StrAppend(&text, "  size:  ", info.size, "\n", absl::StrFormat("  flags: 0x%x (", info.flags));
      for (const FlagName& known : kFlagNames) {
        if (info.Has(known.flag)) absl::StrAppend(&text, " ", known.name);
      }
      text += " )\n";
    }
    if (info.block_sizes.has_value()) {
      absl::StrAppend(&text, "  min block: ", info.block_sizes->minimum,
                      "\n  opt block: ", info.block_sizes->preferred,
                      "\n  max block: ", info.block_sizes->maximum_payload, "\n");
    }
    if (!info.contexts.empty()) {
      absl::StrAppend(&text, "  available meta contexts: ", info.contexts.size(), "\n");
      for (const nbd::MetaContext& context : info.contexts) {
        absl::StrAppend(&text, "   ", OneLine(context.name), "\n");
      }
    }
  }
  return text;
}

std::string ExportListJson(const std::vector<nbd::ListedExport>& exports) {
  nlohmann::json list = nlohmann::json::array();
  for (const nbd::ListedExport& listed : exports) {
    const nbd::ExportInfo& info = listed.info;
    nlohmann::json shown = {{"name", info.name}};
    if (!info.description.empty()) shown["description"] = info.description;
    if (info.Has(nbd::kFlagHasFlags)) {
      shown["size"] = info.size;
      shown["flags"] = nlohmann::json::array();
      for (const FlagName& known : kFlagNames) {
        if (info.Has(known.flag)) shown["flags"].push_back(known.name);
      }
    }
    if (info.block_sizes.has_value()) {
      shown["min-block"] = info.block_sizes->minimum;
      shown["opt-block"] = info.block_sizes->preferred;
      shown["max-block"] = info.block_sizes->maximum_payload;
    }
    shown["contexts"] = nlohmann::json::array();
    for (const nbd::MetaContext& context : info.contexts) shown["contexts"].push_back(context.name);
    if (!listed.status.ok()) shown["error"] = std::string(listed.status.message());
    list.push_back(std::move(shown));
  }
  const nlohmann::json whole = {{"exports", std::move(list)}};
  return whole.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace berth::control
