// Export: what a client can ask for by name, and ExportDirectory, where the names are.
#ifndef BERTH_NBD_EXPORT_H_
#define BERTH_NBD_EXPORT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "image/block/block_device.h"
#include "image/io/io_result.h"
#include "nbd/access_rules.h"
#include "nbd/block_sizes.h"

namespace berth::nbd {

enum class Operation : uint8_t { kRead, kWrite, kFlush, kDiscard, kZero, kPrefetch, kExtents };
inline constexpr int kOperationCount = 7;

// Hears of every completed request, on the reactor that served it. Thread-safe, quick, never blocks.
class RequestObserver {
 public:
  virtual ~RequestObserver() = default;
  virtual void Completed(Operation operation, uint64_t bytes, absl::Duration latency, IoResult result) = 0;
};

// Immutable and thread-safe. Shared by the sessions that serve it; the device's destructor may block, so the
// last reference is dropped on an ordinary thread: whoever made the export keeps it until its sessions have
// ended.
struct Export {
  std::string name;         // At most 4,096 bytes (proto.md, "String encoding").
  std::string description;  // For NBD_INFO_DESCRIPTION; may be empty.
  std::shared_ptr<BlockDevice> device;
  bool read_only = false;                     // Always true where the device is.
  bool multi_connection = false;              // NBD_FLAG_CAN_MULTI_CONN may be promised.
  bool require_tls = false;                   // Not for clients in clear.
  AccessRules allowed_clients;                // Of those that come in by the network.
  std::shared_ptr<RequestObserver> observer;  // May be null.
  BlockSizes block_sizes;                     // Passed CheckBlockSizes().
  // Changes the size for a client (NBD_CMD_RESIZE), on a thread where it may block, one call at a time. Null,
  // as it should be unless somebody asked for it: clients cannot.
  std::function<absl::Status(uint64_t new_size)> resize;
};

// Thread-safe; must not block, as reactors call it.
class ExportDirectory {
 public:
  virtual ~ExportDirectory() = default;

  // Null where there is no such export.
  virtual std::shared_ptr<const Export> Find(absl::string_view name) const = 0;
  // In the order of names.
  virtual std::vector<std::shared_ptr<const Export>> List() const = 0;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_EXPORT_H_
