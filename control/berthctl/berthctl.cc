// berthctl: a person's and a script's way to berthd.
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "control/berthctl/command_line.h"
#include "grpc/support/log.h"

int main(int argc, char** argv) {
  // Its own errors are told once, in one line; GRPC_VERBOSITY brings gRPC's back.
  if (std::getenv("GRPC_VERBOSITY") == nullptr) gpr_set_log_function([](gpr_log_func_args*) {});
  // A reader that went away is seen as an error of the stream.
  std::signal(SIGPIPE, SIG_IGN);
  berth::berthctl::Console console{std::cout, std::cerr};
  console.in_is_terminal = isatty(STDIN_FILENO) == 1;
  console.out_is_terminal = isatty(STDOUT_FILENO) == 1;
  console.err_is_terminal = isatty(STDERR_FILENO) == 1;
  const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
  return static_cast<int>(berth::berthctl::RunBerthctl(arguments, console));
}
