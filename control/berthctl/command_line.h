// The command line of berthctl.
#ifndef BERTH_CONTROL_BERTHCTL_COMMAND_LINE_H_
#define BERTH_CONTROL_BERTHCTL_COMMAND_LINE_H_

#include <string>
#include <vector>

#include "control/berthctl/console.h"
#include "control/berthctl/exit_code.h"

namespace berth::berthctl {

// Does what `arguments` (without the programme's name) say. Everything but top's screen goes through
// `console`.
ExitCode RunBerthctl(const std::vector<std::string>& arguments, Console& console);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_COMMAND_LINE_H_
