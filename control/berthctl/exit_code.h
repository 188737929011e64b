// What berthctl's exit status means.
#ifndef BERTH_CONTROL_BERTHCTL_EXIT_CODE_H_
#define BERTH_CONTROL_BERTHCTL_EXIT_CODE_H_

namespace berth::berthctl {

enum class ExitCode : int {
  kSuccess = 0,
  kFailure = 1,
  kUsage = 2,  // The command line, or a value that the server does not take.
  kNotFound = 3,
  kAlreadyExists = 4,
  kPrecondition = 5,  // Something stands in the way: in use, mounted, locked.
  kUnavailable = 6,   // No server, or no answer in time.
  kPermissionDenied = 7,
  kInterrupted = 130,  // By a signal; as a shell says it.
};

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_EXIT_CODE_H_
