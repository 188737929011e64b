#include "image/io/reactor.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "image/io/monotonic_clock.h"

namespace berth {
namespace {

// The user data of completions that nobody waits for.
constexpr uintptr_t kUnawaited = 1;

absl::Status RingError(int error) {
  const std::string text = absl::StrCat("io_uring is not usable here: io_uring_setup: ", strerror(error));
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
    default:
      return absl::InternalError(text);
  }
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
  if (result < 0) return RingError(-result);
  ring_ready_ = true;
  if ((params.features & IORING_FEAT_EXT_ARG) == 0) return RingError(ENOSYS);

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
  assert(enabled == 0);
  (void)enabled;
  ArmWakeup();
  while (!stopped_) {
    SubmitAndWait();
    HandleCompletions();
    RunPosted();
    RunTimers();
    RunScheduled();
  }
}

void Reactor::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
  }
  Post([] {});
}

void Reactor::Post(absl::AnyInvocable<void()> function) {
  bool wake;
  {
    MutexLock lock(&mutex_);
    wake = posted_.empty();
    posted_.push_back(std::move(function));
  }
  if (!wake) return;
  const uint64_t one = 1;
  while (write(wakeup_.get(), &one, sizeof(one)) < 0 && errno == EINTR) {
  }
}

io_uring_sqe* Reactor::NextSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  while (sqe == nullptr) {
    io_uring_submit(&ring_);
    sqe = io_uring_get_sqe(&ring_);
  }
  return sqe;
}

void Reactor::ArmWakeup() {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_read(sqe, wakeup_.get(), &wakeup_count_, sizeof(wakeup_count_), 0);
  io_uring_sqe_set_data(sqe, nullptr);
}

void Reactor::Operation::await_suspend(std::coroutine_handle<> waiter) {
  waiter_ = waiter;
  io_uring_sqe* sqe = reactor_->NextSqe();
  *sqe = sqe_;
  io_uring_sqe_set_data(sqe, this);
}

void Reactor::SubmitAndWait() {
  if (!scheduled_.empty()) {
    // Somebody is ready to go on: take what has completed, do not wait.
    io_uring_submit_and_get_events(&ring_);
    return;
  }
  __kernel_timespec timeout;
  __kernel_timespec* wait = nullptr;
  if (!timers_.empty()) {
    const int64_t left = std::max<int64_t>(0, timers_.begin()->first.due_ns - MonotonicNanoseconds());
    timeout.tv_sec = left / 1'000'000'000;
    timeout.tv_nsec = left % 1'000'000'000;
    wait = &timeout;
  }
  io_uring_cqe* cqe = nullptr;
  io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, wait, nullptr);
}

void Reactor::HandleCompletions() {
  io_uring_cqe* cqe = nullptr;
  while (io_uring_peek_cqe(&ring_, &cqe) == 0 && cqe != nullptr) {
    auto* operation = static_cast<Operation*>(io_uring_cqe_get_data(cqe));
    const int result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    if (operation == nullptr) {
      ArmWakeup();
      continue;
    }
    if (reinterpret_cast<uintptr_t>(operation) == kUnawaited) continue;
    operation->result_ = result;
    operation->waiter_.resume();
  }
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
  io_uring_prep_read(&sqe, fd, buffer, size, offset);
  return Operation(this, sqe);
}

Reactor::Operation Reactor::Write(int fd, const void* buffer, size_t size, uint64_t offset, int rw_flags) {
  io_uring_sqe sqe = {};
  io_uring_prep_write(&sqe, fd, buffer, size, offset);
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
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_cancel(sqe, &operation, 0);
  io_uring_sqe_set_data64(sqe, kUnawaited);
}

Reactor::Timer::Timer(Reactor& reactor, absl::Duration delay, absl::AnyInvocable<void()> function)
    : reactor_(&reactor),
      id_(reactor.next_timer_id_++),
      due_ns_(MonotonicNanoseconds() + std::max<int64_t>(0, absl::ToInt64Nanoseconds(delay))) {
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
