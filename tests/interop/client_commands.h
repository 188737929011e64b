// What Debian's clients can ask a server, as command lines.
#ifndef BERTH_TESTS_INTEROP_CLIENT_COMMANDS_H_
#define BERTH_TESTS_INTEROP_CLIENT_COMMANDS_H_

#include <string>
#include <vector>

namespace berth::testing {

struct ClientCommand {
  std::string name;  // Without the address, for messages and for lists of differences.
  std::vector<std::string> arguments;
};

// Those that only look: every form of nbdinfo, nbddump, and qemu-img. They print the same for servers of the
// same image, but for what the servers themselves differ in.
//
// `uri` is what libnbd takes. `qemu` is what qemu's programs take for the same export: a URI, or with
// `qemu_options` before it (as --object and --image-opts) an option string.
std::vector<ClientCommand> LookingCommands(const std::string& uri, const std::string& qemu,
                                           const std::vector<std::string>& qemu_options = {});

// Copies of the export to files below `folder`, which all hold its content afterwards.
std::vector<ClientCommand> CopyingCommands(const std::string& uri, const std::string& folder);

// Copies of a file over the export, which holds the file's content after each.
std::vector<ClientCommand> FillingCommands(const std::string& file, const std::string& uri);

}  // namespace berth::testing

#endif  // BERTH_TESTS_INTEROP_CLIENT_COMMANDS_H_
