#include "control/berthctl/secret_options.h"

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "image/secret/secret_source.h"

namespace berth::berthctl {

void AddSecret(CLI::App& command, const std::function<v1::Secret*()>& secret) {
  CLI::Option* const file =
      command
          .add_option_function<std::string>(
              "--secret-file", [secret](const std::string& path) { secret()->set_file(path); },
              "Of an encrypted image: the file that berthd reads the secret from, below one of its "
              "--secret-root; also after a restart")
          ->type_name("PATH");
  command
      .add_option_function<int>(
          "--secret-fd",
          [secret](const int& fd) {
            const absl::StatusOr<Secret> read = ReadSecret(fd, absl::StrCat("descriptor ", fd));
            if (!read.ok()) throw CLI::ValidationError("--secret-fd", std::string(read.status().message()));
            secret()->set_value(std::string(read->bytes()));
          },
          "Of an encrypted image: read the secret from this open descriptor (0 is standard input), to its "
          "end, "
          "and send it; berthd does not keep it, and needs it again after a restart")
      ->type_name("FD")
      ->excludes(file);
}

std::string SecretText(const v1::Secret& secret) {
  if (secret.source_case() == v1::Secret::kFile) return absl::StrCat("file ", secret.file());
  return secret.given_by_value() ? "given by value" : "none";
}

}  // namespace berth::berthctl
