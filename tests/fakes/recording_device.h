// RecordingDevice: a filter that writes down what reached the next device, in order, so that a test sees
// whether a flush came after the writes it has to cover, and whether FUA arrived.
//
// Thread-safe. The order of events of different reactors is the order in which they took the record's lock:
// an operation that was started after another had completed stands behind it.
#ifndef BERTH_TESTS_FAKES_RECORDING_DEVICE_H_
#define BERTH_TESTS_FAKES_RECORDING_DEVICE_H_

#include <cstdint>
#include <memory>
#include <ostream>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "image/filter/forwarding.h"
#include "image/io/mutex.h"

namespace berth {

class RecordingDevice final : public ForwardingDevice {
 public:
  enum class Kind : uint8_t { kRead, kWrite, kFlush, kZero, kDiscard, kPrefetch, kExtents };
  enum class Phase : uint8_t { kStart, kEnd };

  struct Event {
    Kind kind;
    Phase phase;
    uint64_t id;  // The same for an operation's start and end.
    uint64_t offset = 0;
    uint64_t length = 0;
    bool fua = false;
    bool no_unmap = false;
    bool fast_only = false;
    int error = 0;  // At the end.
  };

  explicit RecordingDevice(std::shared_ptr<BlockDevice> next);

  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;

  // What happened since the last call.
  std::vector<Event> TakeEvents();

 private:
  friend class RecordingChannel;

  // Returns the id of the operation.
  uint64_t RecordStart(Event event);
  void RecordEnd(Event event, IoResult result);

  Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Event> events_ ABSL_GUARDED_BY(mutex_);
};

// "start #3 write 0+4096 fua", for messages of tests.
std::ostream& operator<<(std::ostream& out, const RecordingDevice::Event& event);

}  // namespace berth

#endif  // BERTH_TESTS_FAKES_RECORDING_DEVICE_H_
