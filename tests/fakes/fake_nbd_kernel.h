// FakeNbdKernel: an NbdKernel in memory that behaves like the measured kernel, so that what attaches devices
// can be tested where there is no nbd.
//
// It keeps duplicates of the sockets as the kernel keeps references, notices when a server's end hangs up,
// says so to the dead-link listener, sends NBD_CMD_DISC and hangs up on Disconnect(), and keeps a device's
// pid and size for as long as somebody holds it. Thread-safe. The listener runs on a thread of the fake's,
// without a lock held.
#ifndef BERTH_TESTS_FAKES_FAKE_NBD_KERNEL_H_
#define BERTH_TESTS_FAKES_FAKE_NBD_KERNEL_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "netlink/nbd_kernel.h"

namespace berth {

class FakeNbdKernel final : public netlink::NbdKernel {
 public:
  enum class Call {
    kConnect,
    kDisconnect,
    kReconfigure,
    kInspect,
    kFindUse,
    kWaitUntilUsable,
    kWaitUntilFree
  };

  // With /dev/nbd0 to /dev/nbd(devices-1); Connect() without an index adds more where all are taken.
  explicit FakeNbdKernel(uint32_t devices = 16);
  ~FakeNbdKernel() override;

  absl::StatusOr<uint32_t> Connect(const netlink::ConnectRequest& request) override;
  absl::Status Disconnect(uint32_t index) override;
  absl::Status Reconfigure(const netlink::ReconfigureRequest& request) override;
  absl::StatusOr<netlink::DeviceState> Inspect(uint32_t index) override;
  absl::StatusOr<netlink::DeviceUse> FindUse(uint32_t index) override;
  // Reads the last sector over the first socket that lives, as the real one does; see SetProbeReads().
  absl::Status WaitUntilUsable(uint32_t index, uint64_t size_bytes, absl::Duration at_most) override;
  absl::Status WaitUntilFree(uint32_t index, absl::Duration at_most) override;
  absl::StatusOr<std::vector<uint32_t>> ListDevices() override;
  // Takes the place of an earlier listener, which was an earlier process's.
  absl::Status WatchDeadLinks(absl::AnyInvocable<void(uint32_t)> listener) override;

  // The next `call` gives `status` and has no effect. Several queue up.
  void FailNext(Call call, absl::Status status);
  // From now on calls of this kind wait before they do anything, until Unblock().
  void Block(Call call);
  void Unblock(Call call);
  // Waits until a call is blocked; false where none came in a minute.
  bool WaitUntilBlocked(Call call);
  // The next `count` Reconfigure() with sockets come before the kernel noticed that the old ones are dead: it
  // drops the new ones and says nothing.
  void DropNextSockets(int count);
  // The next Connect() connects the device and gives `status` nevertheless: an unclear connect.
  void LoseNextConnectAnswer(absl::Status status);
  // Somebody opens the device: after Disconnect() pid, size and identifier stay until Release().
  void Hold(uint32_t index, std::string opener = "cat (pid 1)");
  void Release(uint32_t index);
  // The same for somebody who only probes the device: gone after `looks` calls of FindUse().
  void HoldForLooks(uint32_t index, int looks);
  // Mounted devices are held and claimed until the mount points are set to none.
  void SetMountPoints(uint32_t index, std::vector<std::string> mount_points);
  void SetHolders(uint32_t index, std::vector<std::string> holders);
  void SetPartitions(uint32_t index, std::vector<std::string> partitions);
  // Another program connects the device with `request`'s size and identifier.
  void ConnectForeign(uint32_t index, uint64_t size_bytes, std::string backend_identifier);
  // The kernel's end of a socket dies: the server sees end-of-file, the listener is called.
  void KillSocket(uint32_t index, size_t socket);
  // A dead-link message out of the blue.
  void ReportDeadLink(uint32_t index);
  // Whether WaitUntilUsable() reads from the server: off where nobody serves the sockets. On at first.
  void SetProbeReads(bool on);

  size_t ConnectedDevices() const;
  // Sockets of the device that live.
  size_t LiveSockets(uint32_t index) const;
  // The kernel's end of a live socket, still owned by the fake, for tests that send requests as the kernel
  // would; -1 where it is dead. Valid until the device is disconnected or the socket is replaced.
  int KernelSocket(uint32_t index, size_t socket) const;
  // A copy of it, which the caller closes, and which nobody else closes meanwhile.
  int DuplicateKernelSocket(uint32_t index, size_t socket) const;
  // What the device was connected with; its `sockets` mean nothing any more.
  netlink::ConnectRequest ConnectedWith(uint32_t index) const;

 private:
  struct Device {
    bool connected = false;  // Has a configuration, which an opener keeps alive after a disconnect.
    bool disconnecting = false;
    int32_t pid = 0;
    netlink::ConnectRequest configuration;
    std::vector<int> sockets;  // -1 where dead.
    std::vector<std::string> openers;
    int looks_left = 0;  // Until a prober is gone.
    std::vector<std::string> mount_points;
    std::vector<std::string> holders;
    std::vector<std::string> partitions;

    bool IsHeld() const { return !openers.empty() || !mount_points.empty() || !holders.empty(); }
  };

  // What every call begins with.
  void Enter(Call call);
  // Those with "Locked" are called with mutex_ held.
  absl::Status TakeFailureLocked(Call call);
  absl::StatusOr<Device*> FindLocked(uint32_t index);
  void LetGoLocked(Device& device);
  void CloseSocketLocked(int& fd);
  netlink::DeviceState StateLocked(uint32_t index, const Device& device) const;
  void WatchSockets();
  void WakeWatcher();

  const int wake_fd_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  bool probe_reads_ = true;
  std::map<uint32_t, Device> devices_;
  std::map<Call, std::deque<absl::Status>> failures_;
  std::set<Call> blocking_;
  std::multiset<Call> blocked_;
  std::deque<absl::Status> lost_answers_;
  int reconfigures_to_drop_ = 0;
  std::deque<uint32_t> dead_links_;  // To be told to the listener.
  std::shared_ptr<absl::AnyInvocable<void(uint32_t)>> listener_;
  std::thread watcher_;
};

}  // namespace berth

#endif  // BERTH_TESTS_FAKES_FAKE_NBD_KERNEL_H_
