// IsEnding: whether a process has been killed and is about to be gone.
#ifndef BERTH_CONTROL_ENDING_PROCESS_H_
#define BERTH_CONTROL_ENDING_PROCESS_H_

#include <sys/types.h>

namespace berth::control {

// True for a process that is exiting, is a zombie, has SIGKILL waiting for it, or is not there. Its threads
// may still be in the kernel, and what they began may still reach the disk, until its files are closed.
bool IsEnding(pid_t pid);

}  // namespace berth::control

#endif  // BERTH_CONTROL_ENDING_PROCESS_H_
