// PowerCutDevice: a filter that remembers every write and flush, and tells what a power cut at any moment
// would have left on the disk.
//
// A disk keeps what was complete when a flush began that has ended; of everything later it keeps any sectors,
// in any order. Sectors are whole.
//
// Devices that share a PowerCutClock lose their power together: a moment is one for all of them.
//
// Thread-safe. The next device has to be empty of anything but zeroes, or `initial` says what it contains.
#ifndef BERTH_TESTS_FAKES_POWER_CUT_DEVICE_H_
#define BERTH_TESTS_FAKES_POWER_CUT_DEVICE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "image/filter/forwarding.h"
#include "image/io/mutex.h"

namespace berth {

// Counts what happened to its devices. Thread-safe.
using PowerCutClock = std::atomic<size_t>;

class PowerCutDevice final : public ForwardingDevice {
 public:
  PowerCutDevice(std::shared_ptr<BlockDevice> next, std::vector<uint8_t> initial,
                 std::shared_ptr<PowerCutClock> clock = std::make_shared<PowerCutClock>());

  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;
  absl::Status Resize(uint64_t new_size) override;

  // Moments so far. A cut can be at any of 0 to moments().
  size_t moments() const;

  // The disk after a cut at `moment`; `random` chooses among the sectors that need not be there.
  std::vector<uint8_t> DiskAfterCut(size_t moment, std::mt19937_64& random) const;

 private:
  friend class PowerCutChannel;

  struct Event {
    enum class Kind : uint8_t { kWriteStart, kWriteEnd, kFlushStart, kFlushEnd, kResize } kind;
    uint64_t id;
    size_t moment = 0;    // It is behind a cut at this one.
    uint64_t offset = 0;  // Of kResize, the size.
    std::vector<uint8_t> data = {};
  };

  uint64_t Start(Event::Kind kind, uint64_t offset, absl::Span<const uint8_t> data);
  void End(Event::Kind kind, uint64_t id);

  const std::vector<uint8_t> initial_;
  const std::shared_ptr<PowerCutClock> clock_;
  mutable Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Event> events_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace berth

#endif  // BERTH_TESTS_FAKES_POWER_CUT_DEVICE_H_
