// Writers: threads that use a file system and check what they read, while something happens below it.
#ifndef BERTH_TESTS_KERNEL_WRITERS_H_
#define BERTH_TESTS_KERNEL_WRITERS_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "tests/kernel/disk_server.h"

namespace berth::kernel_test {

// Threads that write blocks of a file each and read them back, past the page cache, until they are stopped.
// Every error is a failed expectation. Lifetime: the mount outlives it.
class Writers {
 public:
  Writers(const Mount& mount, size_t count);
  ~Writers() { Stop(); }

  // Returns when every thread has done `more` rounds from now on. False, with a failed expectation, where one
  // has failed or takes too long.
  bool WaitForRounds(uint64_t more);

  void Stop();

  // After Stop(): what was written last is in the files.
  void ExpectIntact(const Mount& mount) const;
  // After Stop(): how long each round took, from the shortest on.
  std::vector<absl::Duration> Rounds() const;

 private:
  void Write(size_t writer, const std::string& path);

  std::atomic<bool> stop_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool failed_ = false;
  std::vector<uint64_t> rounds_;
  // A thread's own until Stop().
  std::vector<std::map<uint64_t, uint64_t>> contents_;  // Seeds by offset.
  std::vector<std::vector<absl::Duration>> durations_;
  std::vector<std::thread> threads_;
};

}  // namespace berth::kernel_test

#endif  // BERTH_TESTS_KERNEL_WRITERS_H_
