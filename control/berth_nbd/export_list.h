// ListExports: what -L prints of a server.
#ifndef BERTH_CONTROL_BERTH_NBD_EXPORT_LIST_H_
#define BERTH_CONTROL_BERTH_NBD_EXPORT_LIST_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "control/berth_nbd/command_line.h"
#include "nbd/client/export_info.h"
#include "nbd/tls/credentials.h"

namespace berth::control {

// Asks the server that `line` names. `credentials`, where there are any, are a client's. Starts threads of
// its own. Errors as nbd::ListExports().
absl::StatusOr<std::vector<nbd::ListedExport>> FetchExports(
    const CommandLine& line, std::shared_ptr<const nbd::TlsCredentials> credentials);

// qemu-nbd's text, which programs read, except that control characters in names are escaped. Pure.
std::string ExportListText(const std::vector<nbd::ListedExport>& exports);
// {"exports": [{"name": …}]}. Pure.
std::string ExportListJson(const std::vector<nbd::ListedExport>& exports);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_EXPORT_LIST_H_
