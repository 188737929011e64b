// HeldDevices: waits for devices that were disconnected while somebody had them open.
//
// The kernel keeps such a device until its last user closes it, which may be never, and tells nobody when it
// lets go. One thread looks at all of them: at once, then less and less often, once a second at the most
// rare; where no device waits it sleeps.
//
// Thread-safe, and the callback may call Watch(). Lifetime: the kernel outlives it; Stop() comes before what
// the callback uses ends.
#ifndef BERTH_CONTROL_HELD_DEVICES_H_
#define BERTH_CONTROL_HELD_DEVICES_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "image/io/mutex.h"
#include "netlink/nbd_kernel.h"

namespace berth::control {

// A device, and what it is marked with for as long as it is the one that is meant.
struct HeldDevice {
  uint32_t index = 0;
  std::string backend_identifier;

  friend bool operator==(const HeldDevice&, const HeldDevice&) = default;
};

class HeldDevices {
 public:
  // `let_go` hears of each device that the kernel let go, once, on this object's own thread.
  HeldDevices(netlink::NbdKernel* kernel,
              absl::AnyInvocable<void(const std::string& name, const HeldDevice& device)> let_go);
  HeldDevices(const HeldDevices&) = delete;
  HeldDevices& operator=(const HeldDevices&) = delete;
  ~HeldDevices() { Stop(); }

  // Waits for `device` under `name`; replaces what was waited for under it.
  void Watch(const std::string& name, const HeldDevice& device);
  void Forget(const std::string& name);
  size_t size() const;

  // Ends the thread, after a callback that runs. Nobody else is told afterwards.
  void Stop();

 private:
  void Run();
  bool IsLetGo(const HeldDevice& device);

  netlink::NbdKernel* const kernel_;
  absl::AnyInvocable<void(const std::string& name, const HeldDevice& device)>
      let_go_;  // Called by the thread alone.
  mutable Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration pause_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, HeldDevice> devices_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_HELD_DEVICES_H_
