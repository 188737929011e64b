// StateStore: what berthd promised, on disk: a JSON file an object under the state directory.
//
//   DIR/lock             held (flock) while a berthd runs on this directory, whose process id it holds
//   DIR/instance-id      made once; marks this directory's devices in the kernel
//   DIR/exports/NAME.json, DIR/attachments/NAME.json
//
// A file is replaced whole: written beside the old one, synced, renamed over it, and the directory synced. So
// a crash leaves the old object or the new one, and a write that failed (a full disk) leaves the old one.
//
// Thread-safe for different names; calls for one name are the caller's to order. Every call may block on the
// disk.
#ifndef BERTH_CONTROL_STATE_STORE_H_
#define BERTH_CONTROL_STATE_STORE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "berth/state/v1/state.pb.h"
#include "image/io/unique_fd.h"

namespace berth::control {

// One object as it was found. A file that cannot be understood (torn, empty, of a newer berthd) is reported
// with an error that names the file, and stays as it is.
template <typename Record>
struct StoredObject {
  std::string name;
  absl::StatusOr<Record> record;
};

class StateStore {
 public:
  // Takes the directory, making it where it is missing. FAILED_PRECONDITION where another berthd holds it;
  // one that was killed is waited for, ten seconds at most.
  static absl::StatusOr<std::unique_ptr<StateStore>> Open(const std::string& directory);

  StateStore(const StateStore&) = delete;
  StateStore& operator=(const StateStore&) = delete;

  // 32 hexadecimal digits, the same for as long as the directory lives.
  const std::string& instance_id() const { return instance_id_; }

  // On disk when it returns OK. `record.name` is the object's; its format version is set here.
  absl::Status Put(state::v1::ExportRecord record);
  absl::Status Put(state::v1::AttachmentRecord record);

  // OK where there is none.
  absl::Status RemoveExport(absl::string_view name);
  absl::Status RemoveAttachment(absl::string_view name);

  // In the order of names.
  absl::StatusOr<std::vector<StoredObject<state::v1::ExportRecord>>> LoadExports() const;
  absl::StatusOr<std::vector<StoredObject<state::v1::AttachmentRecord>>> LoadAttachments() const;

 private:
  // A folder of objects, open for as long as the store is.
  struct Folder {
    UniqueFd fd;
    std::string path;
  };

  StateStore() = default;
  static absl::StatusOr<Folder> OpenFolder(const std::string& path);
  absl::Status TakeLock(const std::string& directory);
  absl::Status LoadInstanceId();
  static absl::Status WriteFile(const Folder& folder, const std::string& file, const std::string& content);
  static absl::Status RemoveFile(const Folder& folder, absl::string_view name);
  template <typename Record>
  static absl::Status PutRecord(const Folder& folder, Record record);
  template <typename Record>
  static absl::StatusOr<std::vector<StoredObject<Record>>> LoadRecords(const Folder& folder);

  Folder directory_;
  UniqueFd lock_;
  std::string instance_id_;
  Folder exports_;
  Folder attachments_;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_STATE_STORE_H_
