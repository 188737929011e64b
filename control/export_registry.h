// ExportRegistry: the exports by name, from the request that makes one to the file it leaves on disk.
//
// It is also the directory in which NBD clients look names up, and the place that knows who uses an export:
//  * A read-only export, and one with `shared_writers`, may be attached and served any number of times.
//  * Any other may be attached once; or it is served to network clients, in any number of connections, as the
//    protocol cannot tell one client's from another's. While it is attached no network client gets it, and
//    while a network client has it it cannot be attached.
//
// Thread: the ExportDirectory's calls and the counting are quick and may be made on reactors; everything else
// blocks and is made on ordinary threads. Lifetime: nobody uses an export any more when it is destroyed.
#ifndef BERTH_CONTROL_EXPORT_REGISTRY_H_
#define BERTH_CONTROL_EXPORT_REGISTRY_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "berth/state/v1/state.pb.h"
#include "berth/v1/exports.pb.h"
#include "control/event_hub.h"
#include "control/export_image.h"
#include "control/metrics/export_metrics.h"
#include "control/name_turns.h"
#include "control/state_store.h"
#include "control/validation.h"
#include "image/io/mutex.h"
#include "image/opener/image_roots.h"
#include "nbd/export.h"

namespace berth::control {

struct ExportRegistryOptions {
  size_t max_exports = 10000;
  // Where secrets may be read from.
  ImageRoots secret_roots = *ImageRoots::Within({});
  // How long Delete() waits until the last user has gone.
  absl::Duration operation_timeout = absl::Seconds(30);
  // Brings the kernel's devices of an export to a size. Called after its image grew, and before and after it
  // shrinks, on the thread of the call that resizes. Has a deadline of its own.
  std::function<absl::Status(const std::string& name, uint64_t size)> resize_devices;
};

class ExportRegistry final : public nbd::ExportDirectory {
 public:
  // `store` and `events` outlive it.
  ExportRegistry(const ExportRegistryOptions& options, ImageRoots roots, StateStore* store, EventHub* events);
  ~ExportRegistry() override;

  // Opens what the store holds. What cannot be opened is kept, with its error. Before anything else is
  // called.
  absl::Status Restore();

  // Requests are checked already (validation.h). The value of a secret is used and not kept. `deadline` is
  // how long to wait for other calls on the name.
  absl::StatusOr<v1::Export> Create(const std::string& name, const v1::ExportSpec& spec, absl::Time deadline);
  absl::StatusOr<v1::Export> Update(const v1::UpdateExportRequest& request, absl::Time deadline);
  // `disconnect_clients` is called with `force`, and asks for the end of the export's network clients.
  absl::Status Delete(const v1::DeleteExportRequest& request, absl::Time deadline,
                      absl::FunctionRef<void(const std::string& name)> disconnect_clients);
  absl::StatusOr<v1::Export> Get(absl::string_view name) const;
  std::vector<v1::Export> ListPage(const Page& page) const;

  // What a person or a program may want to know of each export, in the order of names.
  struct Activity {
    std::string name;
    uint64_t size_bytes = 0;
    uint32_t clients = 0;  // Connections of network clients.
    std::shared_ptr<const ExportMetrics> metrics;
  };
  std::vector<Activity> ListActivity() const;

  // Tries again to open an image that could not be opened since the start; OK where it is open. NOT_FOUND
  // where there is no such export. `deadline` is as above.
  absl::Status Reopen(const std::string& name, absl::Time deadline);

  // For a stop: requests that wait for a rate limit go on at once, so that they are answered in time.
  void LiftRateLimits();

  // Gives the export to an attachment, which has it until Detached(). `read_only` serves it so.
  absl::StatusOr<std::shared_ptr<const nbd::Export>> AttachTo(absl::string_view name,
                                                              const std::string& attachment, bool read_only);
  // The same for an attachment of an earlier process: without a check, and without a device.
  void Reserve(const std::string& name, const std::string& attachment);
  void Detached(const std::string& name, const std::string& attachment);

  // Counts a network client's connection, or says why it cannot have the export.
  absl::Status AdmitClient(absl::string_view name);
  void ClientGone(absl::string_view name);

  std::shared_ptr<const nbd::Export> Find(absl::string_view name) const override;
  std::vector<std::shared_ptr<const nbd::Export>> List() const override;

 private:
  struct Entry;
  // Finds a name without making a string of it.
  struct NameOrder {
    using is_transparent = void;
    bool operator()(absl::string_view a, absl::string_view b) const { return a < b; }
  };
  using Entries = std::map<std::string, std::shared_ptr<Entry>, NameOrder>;

  std::shared_ptr<const nbd::Export> Serve(const Entry& entry, bool read_only);
  static bool IsExclusive(const Entry& entry);
  static state::v1::ExportRecord RecordOf(const Entry& entry);
  v1::Export Describe(const Entry& entry) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::shared_ptr<Entry> FindEntry(absl::string_view name) const;
  absl::StatusOr<v1::Export> AnswerRepeated(Entry& entry, const v1::ExportSpec& spec);
  // `secret` is the entry's, with the value that it does not keep.
  absl::Status Open(Entry& entry, const v1::Secret& secret);
  absl::StatusOr<std::shared_ptr<Entry>> FindUsable(const std::string& name) const;
  // With the name's turn.
  absl::StatusOr<v1::Export> Apply(Entry& entry, const v1::UpdateExportRequest& request);
  // NBD_CMD_RESIZE.
  absl::Status ResizeForClient(const std::string& name, uint64_t size);
  absl::Status BeginClosing(Entry& entry, bool force);
  void Publish(v1::EventType type, const std::string& name, absl::string_view message = "");

  const ExportRegistryOptions options_;
  const ImageRoots roots_;
  StateStore* const store_;
  EventHub* const events_;
  NameTurns turns_{"export"};

  mutable Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);
  // Attachments by export, those included whose export is not there.
  std::map<std::string, std::set<std::string>, NameOrder> attachments_ ABSL_GUARDED_BY(mutex_);
  size_t being_made_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_EXPORT_REGISTRY_H_
