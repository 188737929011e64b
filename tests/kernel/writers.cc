#include "tests/kernel/writers.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "image/io/unique_fd.h"

namespace berth::kernel_test {
namespace {

constexpr size_t kBlock = 4096;
constexpr uint64_t kBlocks = 64;

std::string FileName(size_t writer) { return absl::StrCat("file", writer); }

bool WriteAndRead(int fd, uint64_t offset, const std::string& block, char* buffer, bool sync) {
  const auto place = static_cast<off_t>(offset);
  memcpy(buffer, block.data(), kBlock);
  errno = 0;
  if (pwrite(fd, buffer, kBlock, place) != static_cast<ssize_t>(kBlock)) return false;
  if (sync && fdatasync(fd) != 0) return false;
  memset(buffer, 0, kBlock);
  if (pread(fd, buffer, kBlock, place) != static_cast<ssize_t>(kBlock)) return false;
  return memcmp(buffer, block.data(), kBlock) == 0;
}

}  // namespace

Writers::Writers(const Mount& mount, size_t count) : rounds_(count), contents_(count), durations_(count) {
  for (size_t i = 0; i < count; ++i) {
    threads_.emplace_back([this, i, path = mount.Path(FileName(i))] { Write(i, path); });
  }
}

bool Writers::WaitForRounds(uint64_t more) {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::vector<uint64_t> before = rounds_;
  const bool done = changed_.wait_for(lock, std::chrono::seconds(90), [&] {
    for (size_t i = 0; i < rounds_.size(); ++i) {
      if (rounds_[i] < before[i] + more) return failed_;
    }
    return true;
  });
  EXPECT_TRUE(done) << "the device does not go on";
  return done && !failed_;
}

void Writers::Stop() {
  stop_ = true;
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Writers::ExpectIntact(const Mount& mount) const {
  for (size_t i = 0; i < contents_.size(); ++i) {
    for (const auto& [offset, seed] : contents_[i]) {
      EXPECT_EQ(ContentAt(mount.Path(FileName(i)), offset, kBlock), Pattern(seed)) << i << " at " << offset;
    }
  }
}

std::vector<absl::Duration> Writers::Rounds() const {
  std::vector<absl::Duration> all;
  for (const std::vector<absl::Duration>& one : durations_) all.insert(all.end(), one.begin(), one.end());
  std::sort(all.begin(), all.end());
  return all;
}

void Writers::Write(size_t writer, const std::string& path) {
  const UniqueFd file(open(path.c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600));
  char* const buffer = static_cast<char*>(std::aligned_alloc(kBlock, kBlock));
  for (uint64_t round = 0; !stop_; ++round) {
    const uint64_t seed = writer << 32 | round;
    const uint64_t offset = round * 7 % kBlocks * kBlock;
    const std::string block = Pattern(seed);
    const absl::Time begin = absl::Now();
    const bool good = WriteAndRead(file.get(), offset, block, buffer, round % 8 == 0);
    EXPECT_TRUE(good) << path << ", round " << round << ": " << strerror(errno);
    durations_[writer].push_back(absl::Now() - begin);
    contents_[writer][offset] = seed;
    std::lock_guard<std::mutex> lock(mutex_);
    rounds_[writer] = round + 1;
    failed_ = failed_ || !good;
    changed_.notify_all();
    if (failed_) break;
  }
  std::free(buffer);
}

}  // namespace berth::kernel_test
