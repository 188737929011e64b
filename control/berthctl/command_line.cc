#include "control/berthctl/command_line.h"

#include <memory>
#include <sstream>
#include <utility>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "control/berthctl/command.h"
#include "control/berthctl/completion.h"
#include "control/berthctl/listing.h"
#include "control/berthctl/option_values.h"
#include "control/berthctl/server.h"
#include "control/berthctl/settings.h"
#include "control/utf8.h"
#include "control/version/version.h"

namespace berth::berthctl {
namespace {

constexpr char kFooter[] =
    "The options above may stand behind a command as well. 'berthctl COMMAND --help' shows a command's own, "
    "and "
    "examples.\n\n"
    "Examples:\n"
    "  berthctl image create /srv/images/disk.raw 10G\n"
    "  berthctl export create disk /srv/images/disk.raw\n"
    "  berthctl attach disk\n"
    "  berthctl detach disk\n"
    "  berthctl --endpoint=host:9842 --tls-ca=ca.pem --tls-cert=me.pem --tls-key=me.key export list\n\n"
    "Exit status: 0 done; 1 failed; 2 bad command line or value; 3 not found; 4 already exists; 5 something "
    "stands "
    "in the way (in use, mounted, locked); 6 no server, or no answer in time; 7 not allowed; 130 cancelled "
    "by a signal.";

// What one command line becomes.
struct CommandLine {
  Settings settings;
  Action remote;                            // With a server; or
  std::function<ExitCode(Console&)> local;  // without one.
};

void AddSettings(CLI::App& app, Settings& settings, Console& console) {
  app.add_option("--endpoint,-e", settings.endpoint, "Where berthd listens: unix:PATH or HOST:PORT")
      ->envname("BERTH_ENDPOINT")
      ->type_name("ADDRESS")
      ->capture_default_str();
  app.add_option("--tls-ca", settings.tls_ca, "PEM file with the authority that signed berthd's certificate")
      ->envname("BERTH_TLS_CA")
      ->type_name("FILE");
  app.add_option("--tls-cert", settings.tls_cert, "PEM file with our own certificate")
      ->envname("BERTH_TLS_CERT")
      ->type_name("FILE");
  app.add_option("--tls-key", settings.tls_key, "PEM file with its key")
      ->envname("BERTH_TLS_KEY")
      ->type_name("FILE");
  AddDuration(app, "--timeout,-t", "How long one call may take (60 s; with --preallocate 1 h)",
              [&settings](absl::Duration timeout) { settings.timeout = timeout; });
  AddDuration(app, "--wait", "Wait so long for berthd to come up",
              [&settings](absl::Duration wait) { settings.wait = wait; });
  app.add_flag("--json,-j", console.json,
               "Print JSON (protobuf's mapping, with the names of the .proto files)");
  app.add_flag("--quiet,-q", settings.quiet, "Show no progress on the terminal");
}

// Names of exports, attachments or operations; an unreachable server has none, and completion waits for it a
// moment only.
std::vector<std::string> NamesFromServer(Settings settings, const Completion& completion) {
  std::ostringstream nowhere;
  Console silent{nowhere, nowhere};
  settings.timeout = absl::Seconds(2);
  std::vector<std::string> names;
  const absl::StatusOr<std::unique_ptr<Server>> server = Server::Open(settings, silent);
  if (!server.ok()) return names;
  if (completion.exports) {
    v1::ListExportsResponse all;
    if (ListExports(**server, &all) != ExitCode::kSuccess) return names;
    for (const v1::Export& one : all.exports()) names.push_back(one.name());
  }
  if (completion.attachments) {
    v1::ListAttachmentsResponse all;
    if (ListAttachments(**server, &all) != ExitCode::kSuccess) return names;
    for (const v1::Attachment& one : all.attachments()) names.push_back(one.name());
  }
  if (completion.operations) {
    v1::ListOperationsResponse all;
    if (ListOperations(**server, &all) != ExitCode::kSuccess) return names;
    for (const v1::Operation& one : all.operations()) names.push_back(one.name());
  }
  return names;
}

void AddCompletion(CLI::App& app, CommandLine& line) {
  CLI::App& script = *app.add_subcommand("completion", "Print a completion script for a shell");
  script.add_option("shell", "The shell: bash")->required()->check(CLI::IsMember({"bash"}));
  script.footer(
      "Examples:\n"
      "  eval \"$(berthctl completion bash)\"\n"
      "  berthctl completion bash >/usr/share/bash-completion/completions/berthctl");
  script.callback([&line] {
    line.local = [](Console& console) {
      console.out << BashCompletionScript() << std::flush;
      return ExitCode::kSuccess;
    };
  });

  // For the script. An empty group keeps it out of the help.
  CLI::App& complete =
      *app.add_subcommand("complete", "Print what may stand next on a command line")->group("");
  const auto text = std::make_shared<std::string>();
  complete.add_option("line", *text)->required();
  complete.callback([&app, &line, text] {
    line.local = [&app, &line, text](Console& console) {
      const Completion completion = Complete(app, *text);
      for (const std::string& word : completion.words) console.out << word << '\n';
      if (!completion.exports && !completion.attachments && !completion.operations) {
        return ExitCode::kSuccess;
      }
      Settings settings = line.settings;
      for (const std::string& option : completion.server_options) {
        const size_t equals = option.find('=');
        const std::string name = option.substr(0, equals);
        std::string* value = name == "--endpoint"   ? &settings.endpoint
                             : name == "--tls-ca"   ? &settings.tls_ca
                             : name == "--tls-cert" ? &settings.tls_cert
                                                    : &settings.tls_key;
        *value = option.substr(equals + 1);
      }
      for (const std::string& name : NamesFromServer(settings, completion)) {
        console.out << Printable(name) << '\n';
      }
      console.out << std::flush;
      return ExitCode::kSuccess;
    };
  });
}

ExitCode Usage(Console& console, const std::string& command, absl::string_view text) {
  console.err << "berthctl: " << (command.empty() ? "" : absl::StrCat(command, ": ")) << Printable(text)
              << " (see 'berthctl" << (command.empty() ? "" : absl::StrCat(" ", command)) << " --help')"
              << std::endl;
  return ExitCode::kUsage;
}

// The commands that were recognised: "export create".
std::string CommandOf(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command = &app; !command->get_subcommands().empty();) {
    command = command->get_subcommands().front();
    names.push_back(command->get_name());
  }
  return absl::StrJoin(names, " ");
}

// CLI11 wants its arguments backwards, and would take what follows "--description=" for its value.
std::vector<std::string> ForCli11(const std::vector<std::string>& arguments) {
  std::vector<std::string> forward;
  for (const std::string& argument : arguments) {
    if (absl::StartsWith(argument, "--") && argument.find('=') == argument.size() - 1) {
      forward.push_back(argument.substr(0, argument.size() - 1));
      forward.emplace_back();
    } else {
      forward.push_back(argument);
    }
  }
  return {forward.rbegin(), forward.rend()};
}

// CLI11 reports by exceptions, which end here.
ExitCode Parse(CLI::App& app, const std::vector<std::string>& arguments, Console& console, bool* done) {
  *done = true;
  try {
    app.parse(ForCli11(arguments));
  } catch (const CLI::CallForVersion&) {
    console.out << "berthctl " << control::kVersion << std::endl;
    return ExitCode::kSuccess;
  } catch (const CLI::Success& success) {
    app.exit(success, console.out, console.err);
    return ExitCode::kSuccess;
  } catch (const CLI::RequiredError& error) {
    const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
    return Usage(
        console, CommandOf(app),
        unknown.empty() ? error.what() : absl::StrCat("there is no command '", unknown.front(), "'"));
  } catch (const CLI::ParseError& error) {
    return Usage(console, CommandOf(app), error.what());
  }
  *done = false;
  return ExitCode::kSuccess;
}

}  // namespace

ExitCode RunBerthctl(const std::vector<std::string>& arguments, Console& console) {
  CommandLine line;
  CLI::App app("berthctl drives berthd: disk images become exports, and exports become /dev/nbdN.",
               "berthctl");
  app.require_subcommand(1);
  app.fallthrough();
  app.set_version_flag("--version,-V", control::kVersion);
  app.footer(kFooter);
  AddSettings(app, line.settings, console);
  AddImageCommands(app, line.remote);
  AddExportCommands(app, line.remote);
  AddAttachmentCommands(app, line.remote);
  AddOperationCommands(app, line.remote);
  AddMonitoringCommands(app, line.remote);
  AddTopCommand(app, line.remote);
  AddCompletion(app, line);

  // gRPC carries only text; the server could not even say which field was none.
  for (const std::string& argument : arguments) {
    if (control::ValidUtf8(argument) == argument) continue;
    return Usage(console, "", absl::StrCat("'", absl::CHexEscape(argument), "' is not UTF-8"));
  }
  bool done = false;
  const ExitCode parsed = Parse(app, arguments, console, &done);
  if (done) return parsed;
  if (line.local) return line.local(console);
  // What is shown meanwhile is for a person who waits.
  if (console.json || line.settings.quiet) console.err_is_terminal = false;
  const absl::StatusOr<std::unique_ptr<Server>> server = Server::Open(line.settings, console);
  if (!server.ok()) return Usage(console, "", server.status().message());
  const ExitCode code = line.remote(**server);
  if (code == ExitCode::kSuccess && !console.out) {
    console.err << "berthctl: standard output: cannot be written" << std::endl;
    return ExitCode::kFailure;
  }
  return code;
}

}  // namespace berth::berthctl
