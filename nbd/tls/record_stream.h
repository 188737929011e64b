// RecordStream: the bytes of a TLS connection below the TLS library, which reads and writes them in memory
// while the reactor's ring moves them.
//
// Where the kernel has taken encryption over, what the library still writes (alerts) goes to the socket at
// once, as a record of its kind.
//
// Thread: confined to its reactor. Lifetime: outlives the library's connection that has its BIO; the socket
// outlives both.
#ifndef BERTH_NBD_TLS_RECORD_STREAM_H_
#define BERTH_NBD_TLS_RECORD_STREAM_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "nbd/tls/openssl_handles.h"

namespace berth::nbd {

class RecordStream {
 public:
  explicit RecordStream(int socket);
  RecordStream(const RecordStream&) = delete;
  RecordStream& operator=(const RecordStream&) = delete;
  ~RecordStream();

  // What the library reads from and writes to. Called once; the caller owns a reference.
  BIO* NewBio();

  // Whether the kernel encrypts what is sent: plain bytes go to the socket.
  bool kernel_encrypts() const { return kernel_encrypts_; }

  // Whether there are received bytes that the library has not read.
  bool has_input() const { return input_begin_ < input_end_; }

  // Where to receive to. Only after the library asked for more, having taken everything there was.
  iovec PrepareSpace();
  // So many bytes were received there.
  void Commit(size_t count);
  // Gives memory back that is not in use.
  void Shrink();

  // Records that have not left. Those of one call stay where they are until Sent(); the library's further
  // ones come after them.
  bool has_output() const { return sent_ < leaving_.size() || !output_.empty(); }
  size_t output_size() const { return leaving_.size() - sent_ + output_.size(); }
  iovec NextOutput();
  void Sent(size_t count);
  // Between these the ring has what NextOutput() returned, and nobody else sends.
  void BeginSend() { sending_ = true; }
  void EndSend() { sending_ = false; }
  // Sends without waiting: 0 once there is nothing left, else -errno.
  int SendOutput();

 private:
  static int Write(BIO* bio, const char* data, int size);
  static int Read(BIO* bio, char* data, int size);
  static long Control(BIO* bio, int command, long number, void* pointer);
  static BIO_METHOD* Method();

  const int socket_;
  const OpensslBio socket_bio_;  // Knows how to give keys to the kernel.
  bool kernel_encrypts_ = false;
  std::vector<uint8_t> input_;
  size_t input_begin_ = 0;
  size_t input_end_ = 0;
  size_t space_ = 0;  // How much to receive at once.
  // Of the library's own type of byte, as a vector copies others one at a time.
  std::vector<char> output_;
  std::vector<char> leaving_;
  size_t sent_ = 0;  // Of leaving_.
  bool sending_ = false;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_TLS_RECORD_STREAM_H_
