// CallThread runs calls that may hang in the kernel, out of reach of signals and socket timeouts, on a thread
// of its own, so that the caller can stop waiting.
//
// A netlink request is carried out inside send(), under a lock that any other program's request can hold for
// as long as its device does not answer; opening a block device waits for its server.
#ifndef BERTH_NETLINK_CALL_THREAD_H_
#define BERTH_NETLINK_CALL_THREAD_H_

#include <memory>
#include <string>
#include <thread>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"

namespace berth::netlink {

// Thread-safe. The thread starts with the first call and is named `name` (at most 15 bytes). The destructor
// joins it, unless a call hangs in it: then the thread ends when that call does, on its own.
class CallThread {
 public:
  explicit CallThread(std::string name);
  ~CallThread();
  CallThread(const CallThread&) = delete;
  CallThread& operator=(const CallThread&) = delete;

  // Runs `call` and returns its status. Calls run one after the other; waiting for one's turn counts.
  // DEADLINE_EXCEEDED where it did not return within `at_most`: it goes on and nobody sees its result, so it
  // must own all that it touches. If it then succeeds, `undo` runs on the thread. UNAVAILABLE, without
  // running it, where an earlier call hangs. Both texts name the call that hangs by its `name` and tell for
  // how long.
  absl::Status Run(
      std::string name, absl::Duration at_most, absl::AnyInvocable<absl::Status()> call,
      absl::AnyInvocable<void()> undo = [] {});

 private:
  struct State;

  static void Serve(std::shared_ptr<State> state);

  const std::string thread_name_;
  const std::shared_ptr<State> state_;  // Shared with the thread, which may outlive this object.
  std::thread thread_;                  // Guarded by state_->mutex until the destructor.
};

}  // namespace berth::netlink

#endif  // BERTH_NETLINK_CALL_THREAD_H_
