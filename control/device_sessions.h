// DeviceSessions: the server's side of a kernel device: socketpairs, and an NBD session on an end of each.
//
// Connections are offered to the kernel and may be refused without a word: Add(), hand kernel_ends() to the
// kernel, CloseKernelEnds(), which tells how many the kernel has. One that it did not take ends by itself.
//
// Thread: offering is for one ordinary thread at a time, the rest for any. Lifetime: the reactors outlive the
// sessions; destroying this object does not end them, Stop() does.
#ifndef BERTH_CONTROL_DEVICE_SESSIONS_H_
#define BERTH_CONTROL_DEVICE_SESSIONS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "image/io/mutex.h"
#include "image/io/reactor_pool.h"
#include "image/io/unique_fd.h"
#include "nbd/export.h"
#include "nbd/session.h"

namespace berth::control {

class DeviceSessions {
 public:
  // `on_lost` is called each time one of the kernel's connections has ended, for whatever reason, with how
  // many are left; on a reactor's thread, from several at once, and it must not block.
  DeviceSessions(ReactorPool& reactors, std::shared_ptr<const nbd::Export> served,
                 const nbd::SessionOptions& options, absl::AnyInvocable<void(size_t live) const> on_lost);

  // Starts `count` sessions more, spread over the reactors; they read from now on.
  absl::Status Add(size_t count);

  // The kernel's ends of those that were added last, to be handed to it. They stay open until
  // CloseKernelEnds(): only then does the end of the kernel's own copies reach the sessions.
  std::vector<int> kernel_ends() const;
  // Returns how many of them the kernel keeps.
  size_t CloseKernelEnds();

  // Connections that the kernel has.
  size_t live() const;
  // How many sessions have not ended, those included that the kernel did not take.
  size_t running() const;

  // Lets running requests finish and ends all sessions. Returns at once.
  void Stop();

  // Until every session has ended. False when `deadline` has passed first.
  bool WaitUntilEnded(absl::Time deadline);
  // Until every session has ended whose connection the kernel does not have.
  bool WaitUntilSettled(absl::Time deadline);

 private:
  // Sessions by number. Outlives this object in their callbacks.
  struct Numbers {
    Mutex mutex;
    CondVar changed;
    std::set<uint64_t> running ABSL_GUARDED_BY(mutex);
    std::set<uint64_t> live ABSL_GUARDED_BY(mutex);
    absl::AnyInvocable<void(size_t live) const> on_lost;
  };
  // What is known of a connection until the kernel has taken it or not.
  struct Offer {
    uint64_t number = 0;
    UniqueFd kernel;
    // A copy of the session's end, which shows whether the other one is still held.
    UniqueFd server;
  };

  static void OneEnded(const std::shared_ptr<Numbers>& numbers, uint64_t number);

  ReactorPool& reactors_;
  const std::shared_ptr<const nbd::Export> served_;
  const nbd::SessionOptions options_;
  const std::shared_ptr<Numbers> numbers_ = std::make_shared<Numbers>();
  uint64_t next_number_ = 0;
  std::vector<Offer> offers_;
  Mutex mutex_;
  std::map<uint64_t, std::shared_ptr<nbd::Session>> sessions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_DEVICE_SESSIONS_H_
