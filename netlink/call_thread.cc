#include "netlink/call_thread.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace berth::netlink {
namespace {

using Clock = std::chrono::steady_clock;

std::string Since(Clock::time_point start) {
  const auto elapsed = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
  return absl::StrCat(elapsed.count(), " ms");
}

}  // namespace

struct CallThread::State {
  enum class Phase {
    kIdle,
    kRunning,    // The caller waits.
    kAbandoned,  // The caller has gone; `undo` follows a success.
    kDone,       // `result` waits for the caller.
  };

  std::mutex mutex;
  std::condition_variable changed;
  // Below: guarded by mutex. `call` and `undo` are run by the thread without it.
  Phase phase = Phase::kIdle;
  bool stopping = false;
  std::string name;
  Clock::time_point started;
  std::optional<absl::AnyInvocable<absl::Status()>> call;
  absl::AnyInvocable<void()> undo;
  absl::Status result;
};

CallThread::CallThread(std::string name) : thread_name_(std::move(name)), state_(std::make_shared<State>()) {}

CallThread::~CallThread() {
  bool hangs = false;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stopping = true;
    hangs = state_->phase == State::Phase::kAbandoned;
  }
  state_->changed.notify_all();
  if (!thread_.joinable()) return;
  if (hangs) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

absl::Status CallThread::Run(std::string name, absl::Duration at_most,
                             absl::AnyInvocable<absl::Status()> call, absl::AnyInvocable<void()> undo) {
  const auto deadline = Clock::now() + absl::ToChronoMilliseconds(std::min(at_most, absl::Hours(24)));
  State& state = *state_;
  std::unique_lock<std::mutex> lock(state.mutex);
  const bool my_turn = state.changed.wait_until(lock, deadline, [&] {
    return state.phase == State::Phase::kIdle || state.phase == State::Phase::kAbandoned;
  });
  if (state.phase == State::Phase::kAbandoned) {
    return absl::UnavailableError(
        absl::StrCat(name, ": not tried, as an earlier call hangs in the kernel since ", Since(state.started),
                     ": ", state.name, "; try again when it has returned"));
  }
  if (!my_turn) {
    return absl::DeadlineExceededError(absl::StrCat(name, ": waited ", absl::FormatDuration(at_most),
                                                    " behind ", state.name, ", which runs since ",
                                                    Since(state.started)));
  }
  if (!thread_.joinable()) {
    thread_ = std::thread([state = state_] { Serve(state); });
    pthread_setname_np(thread_.native_handle(), thread_name_.substr(0, 15).c_str());
  }
  state.phase = State::Phase::kRunning;
  state.name = std::move(name);
  state.started = Clock::now();
  state.call = std::move(call);
  state.undo = std::move(undo);
  state.changed.notify_all();
  if (!state.changed.wait_until(lock, deadline, [&] { return state.phase == State::Phase::kDone; })) {
    state.phase = State::Phase::kAbandoned;
    // Those who wait for their turn need not wait any longer.
    state.changed.notify_all();
    return absl::DeadlineExceededError(
        absl::StrCat(state.name, ": the kernel did not answer within ", absl::FormatDuration(at_most)));
  }
  absl::Status result = std::move(state.result);
  state.phase = State::Phase::kIdle;
  state.changed.notify_all();
  return result;
}

void CallThread::Serve(std::shared_ptr<State> state) {
  std::unique_lock<std::mutex> lock(state->mutex);
  while (true) {
    state->changed.wait(lock, [&] { return state->stopping || state->call.has_value(); });
    if (!state->call) return;
    absl::AnyInvocable<absl::Status()> call = *std::move(state->call);
    absl::AnyInvocable<void()> undo = std::move(state->undo);
    state->call.reset();
    lock.unlock();
    absl::Status result = call();
    // What it owns (sockets) is let go before anybody learns that it returned.
    call = nullptr;
    lock.lock();
    if (state->phase == State::Phase::kAbandoned) {
      lock.unlock();
      if (result.ok()) undo();
      undo = nullptr;
      lock.lock();
      state->phase = State::Phase::kIdle;
    } else {
      state->result = std::move(result);
      state->phase = State::Phase::kDone;
    }
    state->changed.notify_all();
  }
}

}  // namespace berth::netlink
