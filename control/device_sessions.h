// DeviceSessions: the server's side of a kernel device: socketpairs, and an NBD session on an end of each.
//
// Thread-safe. Lifetime: the reactors outlive the sessions; destroying this object does not end them, Stop()
// does.
#ifndef BERTH_CONTROL_DEVICE_SESSIONS_H_
#define BERTH_CONTROL_DEVICE_SESSIONS_H_

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "image/io/mutex.h"
#include "image/io/reactor_pool.h"
#include "image/io/unique_fd.h"
#include "nbd/export.h"
#include "nbd/session.h"

namespace berth::control {

class DeviceSessions {
 public:
  // Starts `count` sessions, spread over the reactors. `on_all_ended` is called once, on a reactor's thread,
  // when the last of them has ended, for whatever reason; it must not block. Any thread.
  static absl::StatusOr<std::unique_ptr<DeviceSessions>> Start(ReactorPool& reactors,
                                                               std::shared_ptr<const nbd::Export> served,
                                                               size_t count,
                                                               const nbd::SessionOptions& options,
                                                               absl::AnyInvocable<void()> on_all_ended);

  // The kernel's ends, to be handed to it. They stay open until CloseKernelEnds(): only then does the end of
  // the kernel's own copies reach the sessions.
  std::vector<int> kernel_ends() const;
  void CloseKernelEnds() { kernel_ends_.clear(); }

  // How many sessions have not ended.
  size_t running() const;

  // Lets running requests finish and ends all sessions. Returns at once.
  void Stop();

  // False when `deadline` has passed first.
  bool WaitUntilEnded(absl::Time deadline);

 private:
  // Outlives this object in the sessions' callbacks.
  struct Count {
    Mutex mutex;
    CondVar changed;
    size_t running ABSL_GUARDED_BY(mutex) = 0;
    absl::AnyInvocable<void()> on_all_ended;
  };

  DeviceSessions() = default;
  static void OneEnded(const std::shared_ptr<Count>& count);

  std::shared_ptr<Count> count_;
  std::vector<UniqueFd> kernel_ends_;
  std::vector<std::shared_ptr<nbd::Session>> sessions_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_DEVICE_SESSIONS_H_
