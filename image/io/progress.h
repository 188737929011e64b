// Progress: how far a piece of long work is, and whether it is still wanted.
//
// The work reports and asks from its own thread; others look and cancel from theirs. Thread-safe, and cheap
// enough for every step of some milliseconds.
#ifndef BERTH_IMAGE_IO_PROGRESS_H_
#define BERTH_IMAGE_IO_PROGRESS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

namespace berth {

class Progress {
 public:
  Progress() = default;
  // `abandoned` is asked together with Cancel(): whether whoever wanted the work is gone. It is called on the
  // work's thread, and must be callable for as long as the work runs.
  explicit Progress(std::function<bool()> abandoned) : abandoned_(std::move(abandoned)) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // The work's side. Units are the work's; a total of 0 is one that is not known yet.
  void SetTotal(uint64_t total) { total_.store(total, std::memory_order_relaxed); }
  // From one thread at a time. Never goes back: less than before changes nothing.
  void SetDone(uint64_t done) {
    if (done > this->done()) done_.store(done, std::memory_order_relaxed);
  }
  // Asked before each step. Work that finds itself cancelled undoes what its comment says, and returns
  // CANCELLED.
  bool cancelled() const { return cancel_requested() || (abandoned_ && abandoned_()); }

  // The others' side.
  void Cancel() { cancel_requested_.store(true, std::memory_order_relaxed); }
  bool cancel_requested() const { return cancel_requested_.load(std::memory_order_relaxed); }
  uint64_t done() const { return done_.load(std::memory_order_relaxed); }
  uint64_t total() const { return total_.load(std::memory_order_relaxed); }

 private:
  const std::function<bool()> abandoned_;
  std::atomic<uint64_t> done_ = 0;
  std::atomic<uint64_t> total_ = 0;
  std::atomic<bool> cancel_requested_ = false;
};

}  // namespace berth

#endif  // BERTH_IMAGE_IO_PROGRESS_H_
