// Attachment: one export as a device of the kernel, from the first record on disk to the last.
//
// What is on disk is always enough to find the device again: the intent is written before CONNECT, the index
// before the call is acknowledged, and the record goes when the kernel has let the device go. The device is
// marked with a backend identifier that names this state directory and this attachment; a device that does
// not carry it is never touched.
#ifndef BERTH_CONTROL_ATTACHMENT_H_
#define BERTH_CONTROL_ATTACHMENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "berth/state/v1/state.pb.h"
#include "berth/v1/attachments.pb.h"
#include "control/device_sessions.h"
#include "control/event_hub.h"
#include "control/held_devices.h"
#include "control/state_store.h"
#include "image/io/mutex.h"
#include "image/io/reactor_pool.h"
#include "nbd/export.h"
#include "nbd/session.h"
#include "netlink/nbd_kernel.h"

namespace berth::control {

struct AttachmentOptions {
  // What a spec leaves open.
  uint32_t connections = 2;
  absl::Duration timeout = absl::Seconds(30);
  absl::Duration dead_connection_timeout = absl::Hours(1);
  // How long the image may take for a request; the device's own timeout shortens it.
  absl::Duration request_timeout = absl::Seconds(20);
  // How long each step may take: until the device is usable, until the kernel lets it go, until its sessions
  // have ended.
  absl::Duration operation_timeout = absl::Seconds(30);
  // How often it is looked whether connections are missing, beside the moments when one is known to be lost.
  absl::Duration check_interval = absl::Seconds(5);
  nbd::SessionOptions session;
};

// What every attachment works with; all of it outlives them.
struct AttachmentEnvironment {
  AttachmentOptions options;
  StateStore* store = nullptr;
  netlink::NbdKernel* kernel = nullptr;
  ReactorPool* reactors = nullptr;
  EventHub* events = nullptr;
  // Hears that an attachment lost a connection; on a reactor's thread. May be null.
  std::function<void(const std::string& name)> connection_lost;
};

// When a request of a device fails because the image does not complete it: always so long before the kernel
// gives it up that the answer comes first, as the kernel would send it once more.
absl::Duration RequestDeadline(absl::Duration request_timeout, absl::Duration device_timeout);

// "berth:INSTANCE/NAME".
std::string BackendIdentifier(absl::string_view instance_id, absl::string_view name);

// Thread: name(), spec(), readable(), Describe() and connections() any; the rest is called by one ordinary
// thread at a time, and blocks. Lifetime: Shutdown(), or a Detach() or Attach() after which it is gone(),
// comes before the destructor.
class Attachment : public std::enable_shared_from_this<Attachment> {
 public:
  // `record` needs name, spec and create time, or is one that was read from disk.
  Attachment(const AttachmentEnvironment* environment, state::v1::AttachmentRecord record);

  // A record that cannot be read: shown as failed with `error`.
  static std::shared_ptr<Attachment> Unreadable(const AttachmentEnvironment* environment,
                                                absl::string_view name, const absl::Status& error);

  // Connects a device to `served`. On an error everything is as before and the attachment gone(), unless that
  // failed too: then it stays, failed, to be detached.
  absl::Status Attach(std::shared_ptr<const nbd::Export> served);

  // Takes back the device of an earlier process, or of connections that were lost, with fresh connections;
  // where there is no such device any more, connects one. On an error it is failed and may be tried again.
  absl::Status Resume(std::shared_ptr<const nbd::Export> served);

  // Gives the device new connections for those that it lost while others still serve it. With `probe` it is
  // offered one even where none is known to be missing: the kernel takes it where it knows better.
  absl::Status ReplaceConnections(bool probe);

  // Whether Resume() may be tried without being asked for: it failed, and its device waits for connections.
  bool WaitsForConnections() const;

  // Disconnects and forgets. Without `force` refuses a device that is mounted or held, with the reason. Where
  // somebody keeps the device open all the same, it is disconnected and held_device(): FAILED_PRECONDITION,
  // reason DETACHING, and another Detach() finishes once the kernel let it go.
  absl::Status Detach(bool force);

  // Tells the kernel that the export has `export_size` bytes. Nothing where it knows that already, or where
  // no device is connected.
  absl::Status ResizeDevice(uint64_t export_size);

  // Shown as failed because of `error`; the same one again is no new event.
  void Fail(const absl::Status& error);

  // Ends the sessions and leaves the device to the next process: it waits for new connections.
  void BeginShutdown();
  absl::Status Shutdown(absl::Time deadline);

  // Nothing is left of it, on disk or in the kernel.
  bool gone() const { return gone_; }
  // CONNECT was never seen to succeed, and there is no such device.
  absl::StatusOr<bool> LeftNothing() const;
  // The disconnect was decided on.
  bool detaching() const { return record_.phase() == state::v1::ATTACHMENT_PHASE_DISCONNECTING; }
  // The device that is disconnected and waits for its last user.
  const std::optional<HeldDevice>& held_device() const { return held_device_; }
  // Whether the export may still be read or written through it.
  bool uses_export() const { return served_ != nullptr || !detaching(); }
  const v1::AttachmentSpec& spec() const { return spec_; }
  const std::string& name() const { return name_; }
  bool readable() const { return readable_; }

  // Any thread.
  v1::Attachment Describe() const;
  uint32_t connections() const;

 private:
  absl::Status FillRecord();
  uint64_t DeviceSize(uint64_t export_size) const;
  uint64_t DeviceSize() const { return DeviceSize(served_->device->size()); }
  absl::Status Connect(const std::optional<uint32_t>& index);
  absl::Status ExplainConnectFailure(absl::Status status, const std::optional<uint32_t>& index) const;
  absl::Status FinishAttach();
  absl::Status Undo(absl::Status reason);
  absl::Status ResumeDevice();
  absl::Status Reconnect(uint32_t index);
  absl::Status Release();
  absl::Status Disconnect(const netlink::DeviceState& device, bool force);
  absl::Status WaitForLastUser(const netlink::DeviceState& device, bool force);
  absl::Status RefuseWhileInUse(const netlink::DeviceState& device) const;
  // Sessions without connections.
  void StartSessions();
  absl::Status OfferConnections(size_t spare, absl::Time deadline);
  absl::StatusOr<size_t> OfferOnce(size_t count);
  absl::Status EndSessions();
  absl::Status EndSessionsBy(absl::Time deadline);
  // The device that carries our identifier: at the index of the record, or wherever it is.
  absl::StatusOr<std::optional<netlink::DeviceState>> FindDevice() const;
  absl::Status Persist(state::v1::AttachmentPhase phase);
  void ShowDevice(const netlink::DeviceState& device) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Show(v1::AttachmentState state, const absl::Status& error = absl::OkStatus());
  void Publish(v1::EventType type) const;
  // On a reactor's thread; `live` connections are left.
  void ConnectionLost(uint64_t epoch, size_t live);

  const AttachmentEnvironment& environment_;
  // Of the record, which is replaced while others look at these.
  const std::string name_;
  const v1::AttachmentSpec spec_;
  state::v1::AttachmentRecord record_;
  bool readable_ = true;
  bool gone_ = false;
  std::shared_ptr<const nbd::Export> served_;
  std::unique_ptr<DeviceSessions> sessions_;
  std::optional<HeldDevice> held_device_;

  mutable Mutex mutex_;
  v1::Attachment shown_ ABSL_GUARDED_BY(mutex_);
  // Grows with each set of sessions; 0 while none is meant to run.
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t last_epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t connections_ ABSL_GUARDED_BY(mutex_) = 0;  // Of the current epoch, those that live.
  // The kernel dropped them all, and that is what the attachment is shown as failed for.
  bool all_lost_ ABSL_GUARDED_BY(mutex_) = false;
  // What was published last as the reason of a failure.
  std::string failure_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_ATTACHMENT_H_
