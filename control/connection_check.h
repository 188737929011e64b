// ConnectionCheck: calls whoever repairs a device when one of its connections is known to be lost, and for
// all devices from time to time, as such news may be lost too.
//
// Thread-safe. Lifetime: Stop() comes before what the callbacks use ends.
#ifndef BERTH_CONTROL_CONNECTION_CHECK_H_
#define BERTH_CONTROL_CONNECTION_CHECK_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "image/io/mutex.h"

namespace berth::control {

class ConnectionCheck {
 public:
  struct Callbacks {
    // An attachment is said to have lost a connection; `by_kernel` where the kernel says so.
    absl::AnyInvocable<void(const std::string& name, bool by_kernel)> check;
    // The attachment of /dev/nbdN; "" where it has none.
    absl::AnyInvocable<std::string(uint32_t index)> find;
    absl::AnyInvocable<void()> check_all;
  };

  // `interval` is that between two calls of check_all(), shorter at first; where it is zero there are none.
  // The callbacks run on a thread of this object's own, one at a time, and not before Start().
  ConnectionCheck(absl::Duration interval, Callbacks callbacks);
  ConnectionCheck(const ConnectionCheck&) = delete;
  ConnectionCheck& operator=(const ConnectionCheck&) = delete;
  ~ConnectionCheck() { Stop(); }

  void Start();
  // Ends the thread, after a callback that runs.
  void Stop();

  // Quick: for a reactor's thread, and for the kernel's messages.
  void Lost(const std::string& name);
  void LostByKernel(uint32_t index);

 private:
  void Run();

  const absl::Duration interval_;
  Callbacks callbacks_;  // Called by the thread alone.
  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<std::string> names_ ABSL_GUARDED_BY(mutex_);
  std::set<uint32_t> indexes_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_CONNECTION_CHECK_H_
