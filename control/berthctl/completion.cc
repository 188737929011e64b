#include "control/berthctl/completion.h"

#include <cstddef>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "control/berthctl/option_values.h"

namespace berth::berthctl {
namespace {

bool IsServerOption(const std::string& name) {
  return name == "--endpoint" || name == "--tls-ca" || name == "--tls-cert" || name == "--tls-key";
}

// A visible option of `app`, or of the commands above it, which are heard everywhere.
CLI::Option* FindOption(CLI::App* app, const std::string& name) {
  for (; app != nullptr; app = app->get_parent()) {
    CLI::Option* option = app->get_option_no_throw(name);
    if (option != nullptr) return option;
  }
  return nullptr;
}

CLI::App* FindCommand(CLI::App& app, const std::string& name) {
  const std::vector<CLI::App*> found =
      app.get_subcommands([&name](CLI::App* command) { return command->get_name() == name; });
  return found.empty() ? nullptr : found.front();
}

bool TakesValue(const CLI::Option& option) { return option.get_items_expected_max() > 0; }

void CompleteValue(const std::string& option, Completion* completion) {
  if (const google::protobuf::EnumDescriptor* type = EnumOfOption(option)) {
    completion->words = EnumNames(type);
  }
  completion->files = absl::StartsWith(option, "--tls-") || option == "--device";
}

void CompleteOption(CLI::App* app, Completion* completion) {
  for (; app != nullptr; app = app->get_parent()) {
    for (const CLI::Option* option : app->get_options()) {
      // Each command has a --help of its own.
      if (option->get_lnames().empty() ||
          (option->get_lnames().front() == "help" && app->get_parent() != nullptr)) {
        continue;
      }
      const std::string name = absl::StrCat("--", option->get_lnames().front());
      completion->words.push_back(TakesValue(*option) ? absl::StrCat(name, "=") : name);
    }
  }
}

// The positional of this number; null where there is none.
const CLI::Option* PositionalAt(CLI::App& app, size_t index) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_positional() && index-- == 0) return option;
  }
  return nullptr;
}

void CompleteWord(CLI::App& app, size_t positionals, Completion* completion) {
  // A command of one of these names is never an argument, as the tree above is exhausted by then.
  for (const CLI::App* command : app.get_subcommands([](CLI::App*) { return true; })) {
    if (!command->get_group().empty()) completion->words.push_back(command->get_name());
  }
  const CLI::Option* positional = PositionalAt(app, positionals);
  if (positional == nullptr) return;
  const std::string name = positional->get_single_name();
  completion->exports = name == "export" && app.get_name() != "create";
  completion->attachments = name == "attachment";
  completion->operations = name == "operation";
  completion->files = name == "path" || name == "image";
}

}  // namespace

std::string BashCompletionScript() {
  return R"bash(# Completion of berthctl for bash: eval "$(berthctl completion bash)"
_berthctl() {
  local current=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE:0:COMP_POINT} word
  # Bash makes '=' and ':' words of their own; what it replaces begins behind them.
  [[ $current == [=:] ]] && current=
  COMPREPLY=()
  while IFS= read -r word; do
    [[ $word == "$current"* ]] && COMPREPLY+=("$word")
  done < <("${COMP_WORDS[0]}" complete "$line" 2>/dev/null)
  # A value follows an option that ends in '='.
  [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == --*= ]] && compopt -o nospace
  return 0
}
complete -o default -F _berthctl berthctl
)bash";
}

Completion Complete(CLI::App& app, absl::string_view line) {
  std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar(" \t"));
  const std::string last = words.back();
  words.pop_back();
  Completion completion;
  CLI::App* command = &app;
  size_t positionals = 0;
  std::string pending;  // The option whose value comes next.
  bool first = true;
  for (const std::string& word : words) {
    if (word.empty() || std::exchange(first, false)) continue;
    if (!pending.empty()) {
      if (IsServerOption(pending)) completion.server_options.push_back(absl::StrCat(pending, "=", word));
      pending.clear();
    } else if (absl::StartsWith(word, "-")) {
      const std::string name = word.substr(0, word.find('='));
      const CLI::Option* option = FindOption(command, name);
      if (name == word && option != nullptr && TakesValue(*option)) pending = name;
      if (name != word && IsServerOption(name)) completion.server_options.push_back(word);
    } else if (CLI::App* next = FindCommand(*command, word)) {
      command = next;
    } else {
      ++positionals;
    }
  }
  if (!pending.empty()) {
    CompleteValue(pending, &completion);
  } else if (absl::StartsWith(last, "--") && absl::StrContains(last, '=')) {
    CompleteValue(last.substr(0, last.find('=')), &completion);
  } else if (absl::StartsWith(last, "-")) {
    CompleteOption(command, &completion);
  } else {
    CompleteWord(*command, positionals, &completion);
  }
  return completion;
}

}  // namespace berth::berthctl
