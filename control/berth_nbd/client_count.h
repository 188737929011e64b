// ClientCount: how many connections there are, and whether the last client has left.
#ifndef BERTH_CONTROL_BERTH_NBD_CLIENT_COUNT_H_
#define BERTH_CONTROL_BERTH_NBD_CLIENT_COUNT_H_

#include <cstddef>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "image/io/mutex.h"
#include "nbd/server.h"

namespace berth::control {

// Thread-safe.
class ClientCount final : public nbd::ClientObserver {
 public:
  enum class Change { kCame, kLeft, kRejected };
  // Called on reactors' threads: thread-safe, quick, never blocks.
  using OnChange = absl::AnyInvocable<void(Change, absl::string_view peer, const absl::Status& reason) const>;

  explicit ClientCount(OnChange on_change) : on_change_(std::move(on_change)) {}

  // A connection is about to be served; its end takes it off again.
  void Opened();

  size_t connections() const;
  // A client that had the export left, and nobody was connected then.
  bool last_has_left() const;

  absl::Status Connecting(const nbd::Client& client) override;
  void Disconnected(const nbd::Client& client, const absl::Status& reason) override;
  void Rejected(absl::string_view peer, const absl::Status& reason) override;

 private:
  const OnChange on_change_;
  mutable Mutex mutex_;
  size_t connections_ ABSL_GUARDED_BY(mutex_) = 0;
  bool last_has_left_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTH_NBD_CLIENT_COUNT_H_
