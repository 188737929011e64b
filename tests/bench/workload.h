// Workload: what the load generator asks of a server, and the matrix of them that every run measures.
#ifndef BERTH_TESTS_BENCH_WORKLOAD_H_
#define BERTH_TESTS_BENCH_WORKLOAD_H_

#include <cstdint>
#include <string>
#include <vector>

namespace berth::bench {

// Where the image is and how it is reached.
enum class Setup {
  kMemory,      // A file on tmpfs, a Unix socket.
  kDisk,        // A file on the disk's file system, in the page cache, a Unix socket.
  kDiskDirect,  // The same with O_DIRECT.
  kTcp,         // A file on tmpfs, TCP over loopback.
};

enum class Kind { kRead, kWrite, kMixed, kFlush, kZero, kTrim, kWriteFlush };

struct Workload {
  std::string name;
  Setup setup = Setup::kMemory;
  Kind kind = Kind::kRead;
  uint32_t block_size = 4096;  // Bytes a request, for those that have any.
  int connections = 1;
  int depth = 1;              // Requests in flight on each connection.
  bool kernel_style = false;  // As the kernel's client: a send for each header and one for each page.
};

// The matrix of docs/performance.md, in its order.
const std::vector<Workload>& Matrix();

}  // namespace berth::bench

#endif  // BERTH_TESTS_BENCH_WORKLOAD_H_
