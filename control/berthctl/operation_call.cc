#include "control/berthctl/operation_call.h"

#include <signal.h>
#include <unistd.h>

#include <cstddef>
#include <memory>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "berth/v1/operations.grpc.pb.h"
#include "control/berthctl/progress_bar.h"
#include "image/io/mutex.h"

namespace berth::berthctl {
namespace {

// How soon a signal is noticed, and how often what was not there yet is asked for again.
constexpr absl::Duration kPause = absl::Milliseconds(100);
constexpr absl::Duration kCancelTimeout = absl::Seconds(10);

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
constexpr size_t kSignalCount = sizeof kSignals / sizeof kSignals[0];
volatile sig_atomic_t interrupted = 0;

void OnSignal(int) {
  if (interrupted != 0) _exit(static_cast<int>(ExitCode::kInterrupted));
  interrupted = 1;
}

// Notes signals instead of dying of them. One that is ignored (nohup) stays so.
class SignalsNoted {
 public:
  SignalsNoted() {
    interrupted = 0;
    for (size_t i = 0; i < kSignalCount; ++i) {
      sigaction(kSignals[i], nullptr, &saved_[i]);
      if (saved_[i].sa_handler == SIG_IGN) continue;
      struct sigaction action {};
      action.sa_handler = OnSignal;
      sigaction(kSignals[i], &action, nullptr);
    }
  }
  ~SignalsNoted() {
    for (size_t i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &saved_[i], nullptr);
  }
  SignalsNoted(const SignalsNoted&) = delete;
  SignalsNoted& operator=(const SignalsNoted&) = delete;

 private:
  struct sigaction saved_[kSignalCount];
};

// Shows the progress of an operation until it or the call ends.
class ProgressWatch {
 public:
  ProgressWatch(Server& server, const std::string& what, const std::string& operation) {
    if (!server.console().err_is_terminal) return;
    thread_ = std::thread([this, &server, what, operation] { Run(server, what, operation); });
  }
  ~ProgressWatch() {
    {
      MutexLock lock(&mutex_);
      done_ = true;
      if (context_ != nullptr) context_->TryCancel();
    }
    changed_.SignalAll();
    if (thread_.joinable()) thread_.join();
  }
  ProgressWatch(const ProgressWatch&) = delete;
  ProgressWatch& operator=(const ProgressWatch&) = delete;

 private:
  void Run(Server& server, const std::string& what, const std::string& operation) {
    ProgressBar bar(server.console(), what);
    while (true) {
      grpc::ClientContext context;
      {
        MutexLock lock(&mutex_);
        if (done_) return;
        context_ = &context;
      }
      v1::Operation end;
      const grpc::Status status = WatchToTheEnd(
          server, operation, &context, [&bar](const v1::Operation& now) { bar.Update(now); }, &end);
      MutexLock lock(&mutex_);
      context_ = nullptr;
      // The call may not have reached the server yet. Other failures are the call's to tell.
      if (done_ || status.error_code() != grpc::StatusCode::NOT_FOUND) return;
      changed_.WaitUntil(&mutex_, absl::Now() + kPause);
    }
  }

  Mutex mutex_;
  CondVar changed_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::thread thread_;
};

grpc::Status Cancel(Server& server, const std::string& operation) {
  const std::unique_ptr<v1::OperationService::StubInterface> stub =
      v1::OperationService::NewStub(server.channel());
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kCancelTimeout));
  v1::CancelOperationRequest request;
  request.set_name(operation);
  v1::Operation unused;
  return stub->CancelOperation(&context, request, &unused);
}

// Runs `rpc` on a thread of its own, so that this one can cancel its operation when a signal comes.
grpc::Status RunUntilSignalled(Server& server, const std::string& operation,
                               absl::FunctionRef<grpc::Status(grpc::ClientContext*)> rpc,
                               absl::Duration timeout) {
  grpc::Status status;
  Mutex mutex;
  CondVar changed;
  bool done = false;
  std::thread caller([&] {
    grpc::Status result = server.Try(rpc, timeout);
    MutexLock lock(&mutex);
    status = std::move(result);
    done = true;
    changed.SignalAll();
  });
  bool cancelled = false;
  mutex.Lock();
  while (!done) {
    changed.WaitUntil(&mutex, absl::Now() + kPause);
    if (done || interrupted == 0 || cancelled) continue;
    mutex.Unlock();
    // NOT_FOUND: the call has not reached the server yet, so it is tried again.
    cancelled = Cancel(server, operation).ok();
    mutex.Lock();
  }
  mutex.Unlock();
  caller.join();
  return status;
}

}  // namespace

std::string NewOperationName(const std::string& prefix) {
  std::random_device random;
  return absl::StrFormat("%s-%08x%08x", prefix, random(), random());
}

ExitCode CallAsOperation(Server& server, const std::string& what, const std::string& operation,
                         absl::FunctionRef<grpc::Status(grpc::ClientContext*)> rpc, absl::Duration timeout) {
  if (const ExitCode code = server.WaitAsAsked(what); code != ExitCode::kSuccess) return code;
  const SignalsNoted signals;
  grpc::Status status;
  {
    const ProgressWatch watch(server, what, operation);
    status = RunUntilSignalled(server, operation, rpc, timeout);
  }
  if (status.ok()) return ExitCode::kSuccess;
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED && status.error_details().empty()) {
    status = grpc::Status(
        status.error_code(),
        absl::StrCat(status.error_message(), "; the work goes on: 'berthctl operation watch ", operation,
                     "' shows it, 'berthctl operation cancel ", operation, "' ends it"));
  }
  const ExitCode code = server.Fail(what, status);
  const bool cancelled = interrupted != 0 && status.error_code() == grpc::StatusCode::CANCELLED;
  return cancelled ? ExitCode::kInterrupted : code;
}

grpc::Status WatchToTheEnd(Server& server, const std::string& operation, grpc::ClientContext* context,
                           absl::FunctionRef<void(const v1::Operation&)> seen, v1::Operation* end) {
  const std::unique_ptr<v1::OperationService::StubInterface> stub =
      v1::OperationService::NewStub(server.channel());
  v1::WatchOperationRequest request;
  request.set_name(operation);
  const auto reader = stub->WatchOperation(context, request);
  while (reader->Read(end)) seen(*end);
  grpc::Status status = reader->Finish();
  if (status.ok() && end->state() == v1::OPERATION_STATE_RUNNING) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server ended the stream before the operation");
  }
  return status;
}

}  // namespace berth::berthctl
