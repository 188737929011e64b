// Settings: the options of every command.
#ifndef BERTH_CONTROL_BERTHCTL_SETTINGS_H_
#define BERTH_CONTROL_BERTHCTL_SETTINGS_H_

#include <optional>
#include <string>

#include "absl/time/time.h"

namespace berth::berthctl {

struct Settings {
  std::string endpoint = "unix:/run/berth/berthd.sock";  // "unix:PATH" or "HOST:PORT".
  std::string tls_ca;                                    // Paths of PEM files, for HOST:PORT.
  std::string tls_cert;
  std::string tls_key;
  std::optional<absl::Duration> timeout;       // For one call; empty leaves it to the command.
  absl::Duration wait = absl::ZeroDuration();  // For the server to come up.
  bool quiet = false;
};

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_SETTINGS_H_
