// FaultyDevice: a filter that fails or holds the operations that a test chooses, and counts all of them.
//
// Thread-safe: the test's thread chooses while operations run on reactors. Rules apply to what arrives after
// they were made. Lifetime: ends after its channels and after everything that it held was released.
#ifndef BERTH_TESTS_FAKES_FAULTY_DEVICE_H_
#define BERTH_TESTS_FAKES_FAULTY_DEVICE_H_

#include <array>
#include <coroutine>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "image/filter/forwarding.h"
#include "image/io/mutex.h"

namespace berth {

class FaultyDevice final : public ForwardingDevice {
 public:
  enum Operation { kRead, kWrite, kFlush, kZero, kDiscard, kPrefetch, kExtents };
  static constexpr size_t kOperations = 7;
  static constexpr uint64_t kAlways = std::numeric_limits<uint64_t>::max();

  explicit FaultyDevice(std::shared_ptr<BlockDevice> next);
  ~FaultyDevice() override;

  absl::StatusOr<std::unique_ptr<BlockChannel>> OpenChannel(Reactor& reactor) override;

  // The next `times` operations of this kind, after `after` more that pass, fail with the errno `error` and
  // do not reach the next device. Replaces the kind's earlier rule; `times` of 0 ends it.
  void Fail(Operation operation, int error, uint64_t times = kAlways, uint64_t after = 0);

  // From now on operations of this kind wait, before they reach the next device, until Release().
  void Hold(Operation operation);
  // Ends Hold() and lets go on what waits, in the order in which it came.
  void Release(Operation operation);
  // Waits until at least `count` operations of this kind are held; false where `timeout` passed first.
  bool WaitUntilHeld(Operation operation, size_t count, absl::Duration timeout = absl::Seconds(60));

  // Operations of this kind that arrived so far, failed and held ones included.
  uint64_t count(Operation operation) const;

 private:
  friend class FaultyChannel;

  struct Held {
    Reactor* reactor;
    std::coroutine_handle<> waiter;
  };
  struct Rule {
    uint64_t count = 0;
    uint64_t passes = 0;
    uint64_t failures = 0;
    int error = 0;
    bool hold = false;
    std::vector<Held> held;
  };

  // Counts the operation, and returns the error it has to fail with, or 0.
  int Arrive(Operation operation);
  // True where `held` was kept, to be resumed by Release().
  bool Keep(Operation operation, const Held& held);

  mutable Mutex mutex_;
  CondVar held_;
  std::array<Rule, kOperations> rules_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace berth

#endif  // BERTH_TESTS_FAKES_FAULTY_DEVICE_H_
