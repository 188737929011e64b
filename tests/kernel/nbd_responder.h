// NbdResponder: the least that answers the kernel's NBD client, for tests of what stands beside a real
// server. A thread a socket answers READ, WRITE, FLUSH, TRIM and WRITE_ZEROES over bytes in memory, in order,
// with simple replies.
#ifndef BERTH_TESTS_KERNEL_NBD_RESPONDER_H_
#define BERTH_TESTS_KERNEL_NBD_RESPONDER_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace berth {

class NbdResponder {
 public:
  explicit NbdResponder(uint64_t size);
  ~NbdResponder();

  // Serves one end of each of `count` new socket pairs and returns the other ends, which CloseKernelEnds()
  // closes.
  std::vector<int> AddSockets(size_t count);
  void CloseKernelEnds();
  // Hangs up on socket `number`, counted from the first that was added.
  void Kill(size_t number);
  // Until Release() reads get no answer; WaitUntilHolding() returns when one has come.
  void HoldReads();
  void WaitUntilHolding();
  void ReleaseReads();
  // Blocks until that many NBD_CMD_DISC came in all.
  void WaitForDisconnects(size_t count);
  // Blocks until socket `number` saw end-of-file.
  void WaitForEndOfFile(size_t number);

  void Write(uint64_t offset, const std::vector<uint8_t>& bytes);
  std::vector<uint8_t> Read(uint64_t offset, size_t length);
  void Resize(uint64_t size);

 private:
  struct Socket {
    int kernel_end = -1;
    int server_end = -1;
    bool ended = false;
    std::thread thread;
  };

  void Serve(Socket& socket);
  bool ServeOne(int fd);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<uint8_t> image_;
  std::vector<std::unique_ptr<Socket>> sockets_;
  size_t disconnects_ = 0;
  bool hold_reads_ = false;
  bool holding_ = false;
};

}  // namespace berth

#endif  // BERTH_TESTS_KERNEL_NBD_RESPONDER_H_
