// Reactor: one io_uring, one thread, and the coroutines that live there.
//
// Thread: everything but Post() and Stop() is called on the thread that is in Run(). Lifetime: outlives its
// coroutines; whoever starts work waits for its end (Gate) before the reactor is stopped.
//
// An operation is awaited: `int n = co_await reactor.Read(fd, buffer, size, offset);`. The result is what the
// system call would return, with -errno for an error; nothing is retried, and a short count is possible where
// the call allows one. Buffers belong to the kernel until the operation has completed.
//
// One turn of the loop: submit what was queued and wait in one system call; resume everybody whose operation
// completed; then everybody who was scheduled meanwhile (Yield, Post, timers). Work that gains from batches,
// such as sending replies, therefore calls Yield() first.
#ifndef BERTH_IMAGE_IO_REACTOR_H_
#define BERTH_IMAGE_IO_REACTOR_H_

#include <liburing.h>
#include <sys/socket.h>

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "image/io/mutex.h"
#include "image/io/task.h"
#include "image/io/unique_fd.h"

namespace berth {

struct ReactorOptions {
  // Entries of the submission queue. More operations than this may be under way: a full queue is submitted
  // early.
  unsigned queue_depth = 256;
};

class Reactor {
 public:
  // Fails with the reason and the way out where the kernel or a container forbids io_uring.
  static absl::StatusOr<std::unique_ptr<Reactor>> Create(const ReactorOptions& options = {});

  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;
  ~Reactor();

  // Runs until Stop(). The calling thread becomes the reactor's. Called once. Ends the process, with the
  // reason, where the kernel no longer serves the ring: completions would be lost and everybody would wait
  // for ever.
  void Run();

  // Any thread. Run() returns after the current turn; what was posted before has run by then.
  void Stop();

  // Any thread. `function` runs on the reactor's thread in a later turn, in the order of posting.
  void Post(absl::AnyInvocable<void()> function);

  // True on the reactor's own thread.
  bool IsCurrent() const { return thread_.load(std::memory_order_relaxed) == std::this_thread::get_id(); }

  // Resumes `handle` at the end of this turn, in the order of scheduling.
  void Schedule(std::coroutine_handle<> handle) { scheduled_.push_back(handle); }

  // `co_await reactor.Yield()` goes on when everything that completed in this turn has been handled.
  auto Yield() {
    struct Awaiter {
      Reactor* reactor;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> waiter) const { reactor->Schedule(waiter); }
      void await_resume() const noexcept {}
    };
    return Awaiter{this};
  }

  // An operation of the ring; awaited where it is made.
  class Operation {
   public:
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> waiter);
    int await_resume() const noexcept { return result_; }

    Operation(const Operation&) = delete;
    Operation& operator=(const Operation&) = delete;

   private:
    friend class Reactor;
    Operation(Reactor* reactor, const io_uring_sqe& sqe) : reactor_(reactor), sqe_(sqe) {}

    Reactor* const reactor_;
    const io_uring_sqe sqe_;
    std::coroutine_handle<> waiter_;
    int result_ = 0;
  };

  Operation Read(int fd, void* buffer, size_t size, uint64_t offset);
  Operation Write(int fd, const void* buffer, size_t size, uint64_t offset, int rw_flags = 0);
  Operation Fdatasync(int fd);
  // `mode` is fallocate(2)'s.
  Operation Fallocate(int fd, int mode, uint64_t offset, uint64_t length);
  Operation Receive(int socket, void* buffer, size_t size, int flags = 0);
  Operation ReceiveMessage(int socket, msghdr* message, int flags = 0);
  Operation SendMessage(int socket, const msghdr* message, int flags = 0);
  // Returns a new descriptor, closed on exec. shutdown(2) of the socket ends a pending one with an error.
  Operation Accept(int socket);
  // `events` are poll(2)'s; the result has the same form.
  Operation Poll(int fd, unsigned events);
  Operation Connect(int socket, const sockaddr* address, socklen_t length);

  // Asks for an early end of `operation`, which is under way and not a Read or Write of a file: it completes
  // with -ECANCELED, or with its result where that came first.
  void Cancel(Operation& operation);

  // A function to be called once, at the earliest `delay` from now; destroying the Timer takes it back.
  // Thread: the reactor's, its destructor too.
  class Timer {
   public:
    Timer() = default;
    Timer(Reactor& reactor, absl::Duration delay, absl::AnyInvocable<void()> function);
    Timer(Timer&& other) noexcept;
    Timer& operator=(Timer&& other) noexcept;
    ~Timer() { Cancel(); }
    void Cancel();

   private:
    Reactor* reactor_ = nullptr;
    uint64_t id_ = 0;
    int64_t due_ns_ = 0;
  };

  // `co_await reactor.Sleep(d)`.
  auto Sleep(absl::Duration duration) {
    struct Awaiter {
      Reactor* reactor;
      absl::Duration duration;
      Timer timer;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> waiter) {
        timer = Timer(*reactor, duration, [waiter] { waiter.resume(); });
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{this, duration, Timer()};
  }

 private:
  struct TimerKey {
    int64_t due_ns;  // CLOCK_MONOTONIC
    uint64_t id;
    auto operator<=>(const TimerKey&) const = default;
  };

  Reactor() = default;
  absl::Status Initialize(const ReactorOptions& options);
  // A free entry of the submission queue, or null where it is full and the kernel takes nothing for now.
  io_uring_sqe* NextSqe();
  // `data` is what its completion carries: an Operation, or one of the marks of reactor.cc.
  void Enqueue(io_uring_sqe sqe, uint64_t data);
  void EnqueueBacklog();
  void ArmWakeup();
  void Wake();
  // Nothing of this reactor's own stays in the ring, which the kernel takes down in its own time.
  void DisarmWakeup();
  void SubmitAndWait();
  void HandleCompletions();
  void RunPosted();
  void RunTimers();
  void RunScheduled();

  io_uring ring_ = {};
  bool ring_ready_ = false;
  std::atomic<std::thread::id> thread_;

  UniqueFd wakeup_;  // An eventfd; a read of it is always in the ring.
  uint64_t wakeup_count_ = 0;
  bool wakeup_armed_ = false;
  std::deque<io_uring_sqe> backlog_;  // What found the submission queue full.

  std::vector<std::coroutine_handle<>> scheduled_;
  std::vector<std::coroutine_handle<>> running_;  // RunScheduled's, kept for its capacity.
  std::map<TimerKey, absl::AnyInvocable<void()>> timers_;
  uint64_t next_timer_id_ = 1;

  Mutex mutex_;
  std::vector<absl::AnyInvocable<void()>> posted_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ = false;
};

}  // namespace berth

#endif  // BERTH_IMAGE_IO_REACTOR_H_
