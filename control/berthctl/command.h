// The commands of berthctl, each group in a file of its own. A group declares its options, and leaves in
// `chosen` what is to be done when one of its commands is parsed.
#ifndef BERTH_CONTROL_BERTHCTL_COMMAND_H_
#define BERTH_CONTROL_BERTHCTL_COMMAND_H_

#include <functional>
#include <string>

#include "control/berthctl/exit_code.h"

namespace CLI {
class App;
}  // namespace CLI

namespace berth::berthctl {

class Server;

using Action = std::function<ExitCode(Server&)>;

void AddImageCommands(CLI::App& app, Action& chosen);
// check, convert, map, which belong to the command `image`.
void AddImageToolCommands(CLI::App& image, Action& chosen);
void AddExportCommands(CLI::App& app, Action& chosen);
// attach, detach, attachment list|show.
void AddAttachmentCommands(CLI::App& app, Action& chosen);
// events, stats.
void AddMonitoringCommands(CLI::App& app, Action& chosen);
// operation list|show|watch|cancel.
void AddOperationCommands(CLI::App& app, Action& chosen);
void AddTopCommand(CLI::App& app, Action& chosen);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_COMMAND_H_
