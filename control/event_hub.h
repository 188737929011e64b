// EventHub: the last events, numbered, for any number of watchers.
//
// Thread-safe. A watcher holds nothing but the number of the event that it saw last, so a slow one costs no
// memory: it learns that events were forgotten (DATA_LOSS) and lists everything anew.
#ifndef BERTH_CONTROL_EVENT_HUB_H_
#define BERTH_CONTROL_EVENT_HUB_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "berth/v1/monitoring.pb.h"
#include "image/io/mutex.h"

namespace berth::control {

class EventHub {
 public:
  // Remembers `capacity` events. `server_id` stands in every event.
  EventHub(size_t capacity, std::string server_id);

  // Sets sequence, time and server_id. Quick.
  void Publish(v1::Event event);

  // The first event after `sequence`, which is waited for until `deadline`; empty when the deadline has
  // passed. DATA_LOSS where it is forgotten, OUT_OF_RANGE for a sequence that was never given out, CANCELLED
  // after Close().
  absl::StatusOr<std::optional<v1::Event>> WaitForNext(uint64_t sequence, absl::Time deadline);

  // The number of the newest event; 0 before the first.
  uint64_t last_sequence() const;
  const std::string& server_id() const { return server_id_; }

  // Ends every wait, now and later.
  void Close();

 private:
  const size_t capacity_;
  const std::string server_id_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<v1::Event> events_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_sequence_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace berth::control

#endif  // BERTH_CONTROL_EVENT_HUB_H_
