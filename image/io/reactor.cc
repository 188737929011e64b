#include "image/io/reactor.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "image/io/monotonic_clock.h"

namespace berth {
namespace {

// What completions carry that belong to no Operation.
constexpr uint64_t kWakeup = 0;
constexpr uint64_t kUnawaited = 1;

// Above this a request is cut short, as the ring's lengths have 32 bits.
constexpr size_t kLongestTransfer = size_t{1} << 30;

// Threads of the kernel's that a reactor may keep waiting in a file. By itself the kernel gives four for each
// CPU, and one disk that hangs would take them all from the others; they are made when they are needed.
constexpr unsigned kMostFileWorkers = 256;

// Operations that a reactor makes.
constexpr int kNeededOperations[] = {IORING_OP_READ,      IORING_OP_WRITE,        IORING_OP_FSYNC,
                                     IORING_OP_FALLOCATE, IORING_OP_RECV,         IORING_OP_RECVMSG,
                                     IORING_OP_SENDMSG,   IORING_OP_ASYNC_CANCEL, IORING_OP_ACCEPT,
                                     IORING_OP_POLL_ADD,  IORING_OP_CONNECT};

absl::Status RingError(const char* call, int error) {
  const std::string text = absl::StrCat("io_uring is not usable here: ", call, ": ", strerror(error));
  switch (error) {
    case ENOSYS:
      return absl::UnimplementedError(absl::StrCat(text, "; Linux 5.11 or newer is needed"));
    case EPERM:
    case EACCES:
      return absl::PermissionDeniedError(
          absl::StrCat(text,
                       "; set kernel.io_uring_disabled to 0, or let the container's seccomp profile pass "
                       "io_uring_setup, io_uring_enter and io_uring_register"));
    case ENOMEM:
      return absl::ResourceExhaustedError(
          absl::StrCat(text, "; raise the limit on locked memory (ulimit -l)"));
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(absl::StrCat(text, "; raise the limit on open files (ulimit -n)"));
    default:
      return absl::InternalError(text);
  }
}

// A container may pass io_uring_setup and forbid the rest: found out here, not by a thread that hangs later.
absl::Status CheckRing(io_uring* ring) {
  constexpr unsigned kMostOperations = 256;
  std::unique_ptr<io_uring_probe, decltype(&free)> probe(
      static_cast<io_uring_probe*>(
          calloc(1, sizeof(io_uring_probe) + kMostOperations * sizeof(io_uring_probe_op))),
      free);
  const int result = io_uring_register_probe(ring, probe.get(), kMostOperations);
  if (result < 0) return RingError("io_uring_register", -result);
  bool complete = true;
  for (int operation : kNeededOperations) complete &= io_uring_opcode_supported(probe.get(), operation) != 0;
  if (!complete) return RingError("IORING_REGISTER_PROBE", ENOSYS);
  // A ring that is not yet enabled answers EBADFD to whoever may call it.
  if (syscall(__NR_io_uring_enter, ring->ring_fd, 0, 0, 0, nullptr, 0) < 0 && errno != EBADFD) {
    return RingError("io_uring_enter", errno);
  }
  return absl::OkStatus();
}

[[noreturn]] void Die(const char* call, int error) {
  fprintf(stderr, "a reactor cannot go on: %s: %s\n", call, strerror(error));
  abort();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Reactor>> Reactor::Create(const ReactorOptions& options) {
  std::unique_ptr<Reactor> reactor(new Reactor);
  if (absl::Status status = reactor->Initialize(options); !status.ok()) return status;
  return reactor;
}

absl::Status Reactor::Initialize(const ReactorOptions& options) {
  // Newer kernels do completion work on the reactor's own thread when it asks, instead of interrupting it.
  // The ring is enabled in Run(), as such a ring belongs to the thread that enables it.
  io_uring_params params = {};
  params.flags = IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  int result = io_uring_queue_init_params(options.queue_depth, &ring_, &params);
  if (result == -EINVAL) {
    params = {};
    params.flags = IORING_SETUP_R_DISABLED;
    result = io_uring_queue_init_params(options.queue_depth, &ring_, &params);
  }
  if (result < 0) return RingError("io_uring_setup", -result);
  ring_ready_ = true;
  // A process that is forked off would keep the ring with its copy of the ring's memory, and with it every
  // socket that is being read, after this one died.
  if (result = io_uring_ring_dontfork(&ring_); result < 0) return RingError("madvise", -result);
  // Without these a wait has no timeout, and completions that find their queue full are lost.
  constexpr uint32_t kNeededFeatures = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP;
  if ((params.features & kNeededFeatures) != kNeededFeatures) return RingError("io_uring_setup", ENOSYS);
  if (absl::Status status = CheckRing(&ring_); !status.ok()) return status;

  wakeup_.Reset(eventfd(0, EFD_CLOEXEC));
  if (!wakeup_) return absl::ErrnoToStatus(errno, "eventfd");
  return absl::OkStatus();
}

Reactor::~Reactor() {
  if (ring_ready_) io_uring_queue_exit(&ring_);
}

void Reactor::Run() {
  thread_.store(std::this_thread::get_id());
  // liburing 2.3 declares io_uring_enable_rings() and does not export it.
  const long enabled =
      syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
  if (enabled != 0) Die("io_uring_register", errno);
  // Counted for each thread. Where the kernel (before 5.15) does not know it, its own number has to do.
  unsigned workers[] = {kMostFileWorkers, 0};
  (void)io_uring_register_iowq_max_workers(&ring_, workers);
  ArmWakeup();
  while (!stopped_) {
    SubmitAndWait();
    HandleCompletions();
    RunPosted();
    RunTimers();
    RunScheduled();
  }
  DisarmWakeup();
}

void Reactor::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  Post([] {});
}

void Reactor::Post(absl::AnyInvocable<void()> function) {
  // Under the lock: what was posted may run at once, finish the last work, and let the reactor be destroyed
  // while this thread is still here.
  MutexLock lock(&mutex_);
  const bool wake = posted_.empty();
  posted_.push_back(std::move(function));
  if (wake) Wake();
}

void Reactor::Wake() {
  const uint64_t one = 1;
  while (write(wakeup_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

io_uring_sqe* Reactor::NextSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe != nullptr) return sqe;
  io_uring_submit(&ring_);
  return io_uring_get_sqe(&ring_);
}

void Reactor::Operation::await_suspend(std::coroutine_handle<> waiter) {
  waiter_ = waiter;
  reactor_->Enqueue(sqe_, reinterpret_cast<uintptr_t>(this));
}

void Reactor::Enqueue(io_uring_sqe sqe, uint64_t data) {
  sqe.user_data = data;
  io_uring_sqe* free = backlog_.empty() ? NextSqe() : nullptr;
  if (free != nullptr) {
    *free = sqe;
  } else {
    // The kernel has no memory for requests, or wants completions taken first, which cannot be done in the
    // middle of somebody else's coroutine.
    backlog_.push_back(sqe);
  }
}

void Reactor::EnqueueBacklog() {
  while (!backlog_.empty()) {
    io_uring_sqe* free = NextSqe();
    if (free == nullptr) return;
    *free = backlog_.front();
    backlog_.pop_front();
  }
}

void Reactor::ArmWakeup() {
  io_uring_sqe sqe = {};
  io_uring_prep_read(&sqe, wakeup_.get(), &wakeup_count_, sizeof(wakeup_count_), 0);
  Enqueue(sqe, kWakeup);
  wakeup_armed_ = true;
}

void Reactor::DisarmWakeup() {
  if (wakeup_armed_) Wake();
  while (wakeup_armed_) {
    SubmitAndWait();
    HandleCompletions();
  }
}

void Reactor::SubmitAndWait() {
  EnqueueBacklog();
  io_uring_cqe* cqe = nullptr;
  int result;
  if (!scheduled_.empty() || !backlog_.empty()) {
    // Somebody is ready to go on: take what has completed, do not wait.
    result = io_uring_submit_and_get_events(&ring_);
  } else {
    __kernel_timespec timeout;
    __kernel_timespec* wait = nullptr;
    if (!timers_.empty()) {
      const int64_t left = std::max<int64_t>(0, timers_.begin()->first.due_ns - MonotonicNanoseconds());
      timeout.tv_sec = left / 1'000'000'000;
      timeout.tv_nsec = left % 1'000'000'000;
      wait = &timeout;
    }
    result = io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, wait, nullptr);
  }
  switch (-result) {
    case ETIME:   // A timer is due.
    case EINTR:   // A signal came.
    case EAGAIN:  // No memory for requests now, or nothing to take.
    case EBUSY:   // Completions have to be taken first.
      return;
    default:
      if (result < 0) Die("io_uring_enter", -result);
  }
}

void Reactor::HandleCompletions() {
  // Only what is there now: whoever goes on may start operations that complete at once, and those who were
  // scheduled want their turn. One at least, as the first look also brings in what had found the queue full.
  io_uring_cqe* cqe = nullptr;
  for (unsigned left = std::max(1u, io_uring_cq_ready(&ring_)); left > 0; --left) {
    if (io_uring_peek_cqe(&ring_, &cqe) != 0 || cqe == nullptr) break;
    const uint64_t data = cqe->user_data;
    const int result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    if (data == kUnawaited) continue;
    if (data == kWakeup) {
      wakeup_armed_ = false;
      continue;
    }
    auto* operation = reinterpret_cast<Operation*>(data);
    operation->result_ = result;
    operation->waiter_.resume();
  }
  if (!wakeup_armed_ && !stopped_) ArmWakeup();
}

void Reactor::RunPosted() {
  std::vector<absl::AnyInvocable<void()>> posted;
  {
    MutexLock lock(&mutex_);
    posted.swap(posted_);
    stopped_ = stopping_;
  }
  for (absl::AnyInvocable<void()>& function : posted) function();
}

void Reactor::RunTimers() {
  if (timers_.empty()) return;
  const int64_t now = MonotonicNanoseconds();
  while (!timers_.empty() && timers_.begin()->first.due_ns <= now) {
    auto node = timers_.extract(timers_.begin());
    node.mapped()();
  }
}

void Reactor::RunScheduled() {
  // Only those scheduled so far: whoever yields again waits for the next turn, so that completions get
  // theirs.
  running_.swap(scheduled_);
  for (std::coroutine_handle<> handle : running_) handle.resume();
  running_.clear();
}

Reactor::Operation Reactor::Read(int fd, void* buffer, size_t size, uint64_t offset) {
  io_uring_sqe sqe = {};
  io_uring_prep_read(&sqe, fd, buffer, std::min(size, kLongestTransfer), offset);
  return Operation(this, sqe);
}

Reactor::Operation Reactor::Write(int fd, const void* buffer, size_t size, uint64_t offset, int rw_flags) {
  io_uring_sqe sqe = {};
  io_uring_prep_write(&sqe, fd, buffer, std::min(size, kLongestTransfer), offset);
  sqe.rw_flags = rw_flags;
  return Operation(this, sqe);
}

Reactor::Operation Reactor::Fdatasync(int fd) {
  io_uring_sqe sqe = {};
  io_uring_prep_fsync(&sqe, fd, IORING_FSYNC_DATASYNC);
  return Operation(this, sqe);
}

Reactor::Operation Reactor::Fallocate(int fd, int mode, uint64_t offset, uint64_t length) {
  io_uring_sqe sqe = {};
  io_uring_prep_fallocate(&sqe, fd, mode, offset, length);
  return Operation(this, sqe);
}

Reactor::Operation Reactor::Receive(int socket, void* buffer, size_t size, int flags) {
  io_uring_sqe sqe = {};
  io_uring_prep_recv(&sqe, socket, buffer, size, flags);
  return Operation(this, sqe);
}

Reactor::Operation Reactor::ReceiveMessage(int socket, msghdr* message, int flags) {
  io_uring_sqe sqe = {};
  io_uring_prep_recvmsg(&sqe, socket, message, flags);
  return Operation(this, sqe);
}

Reactor::Operation Reactor::SendMessage(int socket, const msghdr* message, int flags) {
  io_uring_sqe sqe = {};
  io_uring_prep_sendmsg(&sqe, socket, message, flags | MSG_NOSIGNAL);
  return Operation(this, sqe);
}

Reactor::Operation Reactor::Accept(int socket) {
  io_uring_sqe sqe = {};
  io_uring_prep_accept(&sqe, socket, nullptr, nullptr, SOCK_CLOEXEC);
  return Operation(this, sqe);
}

Reactor::Operation Reactor::Poll(int fd, unsigned events) {
  io_uring_sqe sqe = {};
  io_uring_prep_poll_add(&sqe, fd, events);
  return Operation(this, sqe);
}

Reactor::Operation Reactor::Connect(int socket, const sockaddr* address, socklen_t length) {
  io_uring_sqe sqe = {};
  io_uring_prep_connect(&sqe, socket, const_cast<sockaddr*>(address), length);
  return Operation(this, sqe);
}

void Reactor::Cancel(Operation& operation) {
  io_uring_sqe sqe = {};
  io_uring_prep_cancel(&sqe, &operation, 0);
  Enqueue(sqe, kUnawaited);
}

namespace {

// An infinite delay is a very long one.
int64_t DueNanoseconds(absl::Duration delay) {
  constexpr int64_t kLongest = std::numeric_limits<int64_t>::max() / 2;
  return MonotonicNanoseconds() + std::clamp<int64_t>(absl::ToInt64Nanoseconds(delay), 0, kLongest);
}

}  // namespace

Reactor::Timer::Timer(Reactor& reactor, absl::Duration delay, absl::AnyInvocable<void()> function)
    : reactor_(&reactor), id_(reactor.next_timer_id_++), due_ns_(DueNanoseconds(delay)) {
  assert(reactor.IsCurrent());
  reactor.timers_.emplace(TimerKey{due_ns_, id_}, std::move(function));
}

Reactor::Timer::Timer(Timer&& other) noexcept
    : reactor_(std::exchange(other.reactor_, nullptr)), id_(other.id_), due_ns_(other.due_ns_) {}

Reactor::Timer& Reactor::Timer::operator=(Timer&& other) noexcept {
  Cancel();
  reactor_ = std::exchange(other.reactor_, nullptr);
  id_ = other.id_;
  due_ns_ = other.due_ns_;
  return *this;
}

void Reactor::Timer::Cancel() {
  if (reactor_ != nullptr) std::exchange(reactor_, nullptr)->timers_.erase(TimerKey{due_ns_, id_});
}

}  // namespace berth
