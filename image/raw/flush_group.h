// FlushGroup: the flushes of one image, one at a time.
//
// Those that arrive while one is under way wait for it and then share the next. That saves flushes, and it is
// what makes their answers right: the kernel reports a failed write-back once for each open file, so of two
// calls that overlap one would see the failure and the other success. For the same reason nothing but the
// group may sync through its file, a write with RWF_DSYNC included.
//
// When a flush fails, the kernel has dropped what it could not write, and a later call would claim success;
// the failure is therefore remembered, and every later flush fails with EIO.
//
// Thread-safe. Lifetime: outlives its flushes.
#ifndef BERTH_IMAGE_RAW_FLUSH_GROUP_H_
#define BERTH_IMAGE_RAW_FLUSH_GROUP_H_

#include <coroutine>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "image/io/file.h"
#include "image/io/io_result.h"
#include "image/io/mutex.h"
#include "image/io/reactor.h"
#include "image/io/task.h"

namespace berth {

class FlushGroup {
 public:
  // `file` outlives the group.
  explicit FlushGroup(const File& file) : file_(file) {}
  FlushGroup(const FlushGroup&) = delete;
  FlushGroup& operator=(const FlushGroup&) = delete;

  // What completed before the call is on stable storage when it returns success. On `reactor`'s thread.
  Task<IoResult> Flush(Reactor& reactor);

 private:
  struct Waiter {
    Reactor* reactor;
    IoResult result;
    bool leads = false;  // Flushes for those who waited with it.
    std::vector<Waiter*> followers;
    std::coroutine_handle<> handle;
  };
  class Turn;

  bool Begin(Waiter* waiter, std::coroutine_handle<> handle);
  void Finish(Waiter* leader);

  const File& file_;
  Mutex mutex_;
  bool running_ ABSL_GUARDED_BY(mutex_) = false;
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Waiter*> waiting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace berth

#endif  // BERTH_IMAGE_RAW_FLUSH_GROUP_H_
