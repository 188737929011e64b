// Task<T>: a coroutine that produces one T, started when it is awaited.
//
// Thread: a task runs, suspends and is resumed on one reactor's thread, and is destroyed there. That
// confinement is what lets the links between frames be plain pointers.
//
// Lifetime: the Task object owns the frame. Arguments are copied or moved into the frame; what they point to
// must outlive the task.
//
// A Task can also be made of a value that is known already, which costs no frame: a function that finds its
// answer without waiting returns `Task<T>(value)` and is not itself a coroutine.
//
// Two faults of g++ 12 shape this file and its use (tests: task_test.cc):
//  * Symmetric transfer is no tail call at -O0, -O1 and under AddressSanitizer, so a long run of awaits that
//  complete at
//    once overflows the stack. Task's await_suspend therefore starts the child itself and returns false ("do
//    not suspend") when the child has finished.
//  * A temporary lambda with captures, or a temporary aggregate with a non-trivial destructor, that is passed
//  by value
//    to a coroutine inside a co_await expression is destroyed once too often. Give it a name first.
#ifndef BERTH_IMAGE_IO_TASK_H_
#define BERTH_IMAGE_IO_TASK_H_

#include <coroutine>
#include <cstddef>
#include <exception>
#include <optional>
#include <utility>

#include "image/io/frame_pool.h"

namespace berth {

template <typename T>
class Task;

namespace task_internal {

struct PromiseBase {
  // Who awaits this task; null until the awaiter has suspended.
  std::coroutine_handle<> continuation;

  static void* operator new(size_t size) { return AllocateFrame(size); }
  static void operator delete(void* frame, size_t size) { FreeFrame(frame, size); }

  struct FinalAwaiter {
    bool await_ready() const noexcept { return false; }
    template <typename Promise>
    void await_suspend(std::coroutine_handle<Promise> finished) const noexcept {
      // The continuation may destroy `finished`: nothing may touch the frame after this.
      if (std::coroutine_handle<> next = finished.promise().continuation) next.resume();
    }
    void await_resume() const noexcept {}
  };

  std::suspend_always initial_suspend() const noexcept { return {}; }
  FinalAwaiter final_suspend() const noexcept { return {}; }
  [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
};

template <typename T>
struct Promise : PromiseBase {
  std::optional<T> value;

  Task<T> get_return_object();
  template <typename U>
  void return_value(U&& result) {
    value.emplace(std::forward<U>(result));
  }
  T Take() { return *std::move(value); }
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() const noexcept {}
  void Take() const noexcept {}
};

}  // namespace task_internal

template <typename T>
class [[nodiscard]] Task {
 public:
  using promise_type = task_internal::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;

  // A task that is finished already, with this value.
  explicit Task(T ready) : ready_(std::move(ready)) {}
  explicit Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), ready_(std::move(other.ready_)) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  // Awaited once.
  bool await_ready() const noexcept { return !handle_; }
  bool await_suspend(std::coroutine_handle<> awaiter) {
    handle_.resume();
    if (handle_.done()) return false;
    handle_.promise().continuation = awaiter;
    return true;
  }
  T await_resume() { return handle_ ? handle_.promise().Take() : *std::move(ready_); }

 private:
  Handle handle_ = nullptr;
  std::optional<T> ready_;
};

template <>
class [[nodiscard]] Task<void> {
 public:
  using promise_type = task_internal::Promise<void>;
  using Handle = std::coroutine_handle<promise_type>;

  explicit Task(Handle handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (handle_) handle_.destroy();
  }

  bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> awaiter) {
    handle_.resume();
    if (handle_.done()) return false;
    handle_.promise().continuation = awaiter;
    return true;
  }
  void await_resume() const noexcept {}

 private:
  Handle handle_ = nullptr;
};

namespace task_internal {

template <typename T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise<T>>::from_promise(*this));
}

inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise<void>>::from_promise(*this));
}

// A coroutine that nobody awaits: it starts at once and frees its own frame at its end.
struct Detached {
  struct promise_type {
    static void* operator new(size_t size) { return AllocateFrame(size); }
    static void operator delete(void* frame, size_t size) { FreeFrame(frame, size); }
    Detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
  };
};

}  // namespace task_internal

// Runs `task` on the calling thread, which must be a reactor's, until it first waits; from then on it goes on
// by itself. Whoever must know that it has ended passes a Gate's holder into the task.
inline void Spawn(Task<void> task) {
  [](Task<void> owned) -> task_internal::Detached { co_await owned; }(std::move(task));
}

}  // namespace berth

#endif  // BERTH_IMAGE_IO_TASK_H_
