// ExportMap: an ExportDirectory that is a map, for servers whose exports are all there is to say about them.
#ifndef BERTH_NBD_EXPORT_MAP_H_
#define BERTH_NBD_EXPORT_MAP_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "image/io/mutex.h"
#include "nbd/export.h"

namespace berth::nbd {

// Thread-safe. Lifetime: outlives the servers that look things up in it.
class ExportMap final : public ExportDirectory {
 public:
  // False, and nothing changes, where the name is taken.
  bool Add(std::shared_ptr<const Export> added);
  // What was removed, or null. The caller drops it once its sessions have ended (Server::DisconnectExport).
  std::shared_ptr<const Export> Remove(absl::string_view name);

  std::shared_ptr<const Export> Find(absl::string_view name) const override;
  std::vector<std::shared_ptr<const Export>> List() const override;

 private:
  mutable Mutex mutex_;
  std::map<std::string, std::shared_ptr<const Export>, std::less<>> exports_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_EXPORT_MAP_H_
