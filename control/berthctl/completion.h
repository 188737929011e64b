// Completion: what may stand next on berthctl's command line.
#ifndef BERTH_CONTROL_BERTHCTL_COMPLETION_H_
#define BERTH_CONTROL_BERTHCTL_COMPLETION_H_

#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/string_view.h"

namespace berth::berthctl {

// The script that `eval` or /usr/share/bash-completion/completions takes. It asks `berthctl complete` for
// each word, so that it need not be made anew with a new berthctl.
std::string BashCompletionScript();

struct Completion {
  // Whole words; "--name=" where a value follows.
  std::vector<std::string> words;
  // The word may also be the name of one of these, which only the server knows.
  bool exports = false;
  bool attachments = false;
  bool operations = false;
  // The word may be a file's name.
  bool files = false;
  // Values of --endpoint and the TLS options given so far, to ask the same server: "--endpoint=unix:/x".
  std::vector<std::string> server_options;
};

// `line` is the command line up to the cursor, the programme's name included.
Completion Complete(CLI::App& app, absl::string_view line);

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_COMPLETION_H_
