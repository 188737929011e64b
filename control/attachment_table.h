// AttachmentTable: the attachments by name.
//
// Calls on one name take turns, so that a request that is sent twice, even at once, makes one device and gets
// one answer; different names go on side by side.
//
// Thread: ordinary threads, any number; calls block, except for those that only look. Lifetime: Shutdown()
// comes before the destructor.
#ifndef BERTH_CONTROL_ATTACHMENT_TABLE_H_
#define BERTH_CONTROL_ATTACHMENT_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "berth/v1/attachments.pb.h"
#include "control/attachment.h"
#include "control/connection_check.h"
#include "control/export_registry.h"
#include "control/held_devices.h"
#include "control/name_turns.h"
#include "control/validation.h"
#include "image/io/mutex.h"

namespace berth::control {

class AttachmentTable {
 public:
  // What `environment` points to, and `exports`, outlives it. Takes the kernel's one listener for dead links.
  AttachmentTable(const AttachmentEnvironment& environment, ExportRegistry* exports, size_t max_attachments);
  ~AttachmentTable();

  // Takes back the devices that the store knows of, after the exports were restored. What cannot be taken
  // back is kept, with its error, and its device is left as it is. Before anything else is called.
  absl::Status Restore();

  // Requests are checked already (validation.h). `deadline` is how long to wait for other calls on the name.
  absl::StatusOr<v1::Attachment> Attach(const std::string& name, const v1::AttachmentSpec& spec,
                                        absl::Time deadline);
  absl::Status Detach(const v1::DetachRequest& request, absl::Time deadline);
  absl::StatusOr<v1::Attachment> Get(absl::string_view name) const;
  std::vector<v1::Attachment> ListPage(const Page& page) const;

  // Brings the devices of an export to its new size.
  absl::Status ResizeDevices(absl::string_view export_name, uint64_t size, absl::Time deadline);

  // Connections to the kernel that are open, by export.
  std::map<std::string, uint32_t> CountConnections() const;
  // Attachments by state: "attaching", "attached", "detaching", "failed".
  std::map<std::string, uint64_t> CountStates() const;

  // Detaches what is not in use. Says what stays, and why, in the log.
  void DetachAll(absl::Time deadline);
  // Ends all sessions and leaves the devices to the next process. DEADLINE_EXCEEDED where requests are stuck
  // in an image; then the sessions go on, and what they use must too.
  absl::Status Shutdown(absl::Time deadline);

 private:
  using Attachments = std::map<std::string, std::shared_ptr<Attachment>, std::less<>>;

  std::shared_ptr<Attachment> Find(absl::string_view name) const;
  std::vector<std::shared_ptr<Attachment>> All() const;
  void RestoreOne(Attachment& attachment);
  // Detaches devices of this state directory that no attachment is about, unless somebody uses them.
  void DetachUnknown();
  absl::Status DetachUnused(uint32_t index);
  absl::StatusOr<v1::Attachment> AnswerRepeated(Attachment& attachment, const v1::AttachmentSpec& spec);
  void Remove(const Attachment& attachment);
  // What follows from a Detach() of an attachment, whatever came of it. With the name's turn.
  void AfterDetach(const Attachment& attachment);
  // The kernel let its device go.
  void FinishDetach(const std::string& name, const HeldDevice& device);
  // Replaces what connections an attachment lost, or takes its device back where it lost them all.
  void CheckConnections(const std::string& name, bool by_kernel);
  absl::Status TakeBack(Attachment& attachment);
  std::string FindByDevice(uint32_t index) const;

  // Outlives the kernel's listener, which calls it until the kernel ends, and the sessions' callbacks.
  struct Wakeup {
    Mutex mutex;
    ConnectionCheck* check ABSL_GUARDED_BY(mutex) = nullptr;  // Null from Shutdown() on.
  };

  const std::shared_ptr<Wakeup> wakeup_ = std::make_shared<Wakeup>();
  const AttachmentEnvironment environment_;
  ExportRegistry* const exports_;
  const size_t max_attachments_;
  NameTurns turns_{"attachment"};

  mutable Mutex mutex_;
  Attachments attachments_ ABSL_GUARDED_BY(mutex_);
  // Last: their threads use all of the above.
  HeldDevices held_devices_;
  ConnectionCheck connection_check_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_ATTACHMENT_TABLE_H_
