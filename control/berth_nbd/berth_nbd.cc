// berth-nbd: serves one disk image to NBD clients, as qemu-nbd does. docs/qemu-nbd.md, and --help.
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "control/berth_nbd/background.h"
#include "control/berth_nbd/command_line.h"
#include "control/berth_nbd/export_list.h"
#include "control/berth_nbd/kernel_device.h"
#include "control/berth_nbd/listening.h"
#include "control/berth_nbd/objects.h"
#include "control/berth_nbd/report.h"
#include "control/berth_nbd/service.h"
#include "control/berth_nbd/trace.h"
#include "image/io/unique_fd.h"
#include "netlink/libnl_nbd_kernel.h"

namespace berth::control {
namespace {

absl::Status DetachDevice(const CommandLine& line) {
  const std::unique_ptr<netlink::NbdKernel> kernel = netlink::LibnlNbdKernel::Create();
  absl::Status status = Detach(*kernel, line.file);
  if (status.ok()) std::printf("%s disconnected\n", line.file.c_str());
  return status;
}

absl::Status PrintList(const CommandLine& line) {
  absl::StatusOr<std::optional<UniqueFd>> activation = TakeActivationSocket(line);
  if (!activation.ok()) return activation.status();
  const absl::StatusOr<Objects> objects = Objects::Parse(line.objects);
  if (!objects.ok()) return objects.status();
  std::shared_ptr<const nbd::TlsCredentials> credentials;
  if (!line.tls_credentials.empty()) {
    absl::StatusOr<std::shared_ptr<const nbd::TlsCredentials>> found =
        objects->Credentials(line.tls_credentials, /*server=*/false);
    if (!found.ok()) return found.status();
    credentials = *std::move(found);
  }
  const absl::StatusOr<std::vector<nbd::ListedExport>> exports = FetchExports(line, std::move(credentials));
  if (!exports.ok()) return exports.status();
  std::fputs((line.json ? ExportListJson(*exports) : ExportListText(*exports)).c_str(), stdout);
  return absl::OkStatus();
}

// `background` is where the process is one; it goes after the error was told, which its caller waits for.
absl::Status ServeImage(const CommandLine& line, std::optional<Background>* background) {
  absl::StatusOr<std::optional<UniqueFd>> activation = TakeActivationSocket(line);
  if (!activation.ok()) return activation.status();
  if (line.fork || (!line.device.empty() && !line.verbose)) {
    absl::StatusOr<Background> entered = Background::Enter();
    if (!entered.ok()) return entered.status();
    background->emplace(*std::move(entered));
  }
  return Serve(line, *std::move(activation), background->has_value() ? &**background : nullptr);
}

absl::Status Run(const CommandLine& line, std::optional<Background>* background) {
  switch (line.action) {
    case CommandLine::Action::kHelp:
      std::fputs(HelpText(line.program).c_str(), stdout);
      return absl::OkStatus();
    case CommandLine::Action::kVersion:
      std::fputs(VersionText(line.program).c_str(), stdout);
      return absl::OkStatus();
    case CommandLine::Action::kEventNames:
      std::fputs(Trace::Names().c_str(), stdout);
      return absl::OkStatus();
    case CommandLine::Action::kDisconnect:
      return DetachDevice(line);
    case CommandLine::Action::kList:
      return PrintList(line);
    case CommandLine::Action::kServe:
      return ServeImage(line, background);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace berth::control

int main(int argc, char** argv) {
  namespace control = berth::control;
  const absl::StatusOr<control::CommandLine> line = control::ParseCommandLine(argc, argv);
  if (!line.ok()) {
    control::Report(argv[0], control::WantsJson(argc, argv), line.status());
    return 1;
  }
  std::optional<control::Background> background;
  const absl::Status status = control::Run(*line, &background);
  if (status.ok()) return 0;
  control::Report(line->program, line->json, status);
  return line->action == control::CommandLine::Action::kDisconnect ? control::DetachExitCode(status) : 1;
}
