// ServerCredentials: a server's TlsCredentials, read again when their files change.
//
// New handshakes use what was read last; connections keep what they began with. Files that are replaced by
// something that cannot be used change nothing: what was read before stays until they are repaired, or are
// good as they are (a certificate that only begins to be valid). Two files that belong together need no care:
// between the first and the second the old ones stay.
#ifndef BERTH_NBD_TLS_SERVER_CREDENTIALS_H_
#define BERTH_NBD_TLS_SERVER_CREDENTIALS_H_

#include <sys/stat.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "image/io/mutex.h"
#include "nbd/tls/credentials.h"

namespace berth::nbd {

// Thread-safe.
class ServerCredentials {
 public:
  // Hears of each change, on the thread that found it: OK where the new files are used from now on, else why
  // not.
  using OnChange = absl::AnyInvocable<void(const absl::Status&)>;

  // Reads the files, with the errors of TlsCredentials::ForServer(), and from then on looks at them every
  // `interval`; an infinite one leaves that to Check().
  static absl::StatusOr<std::unique_ptr<ServerCredentials>> Open(const ServerTlsFiles& files,
                                                                 absl::Duration interval, OnChange on_change);

  ServerCredentials(const ServerCredentials&) = delete;
  ServerCredentials& operator=(const ServerCredentials&) = delete;
  ~ServerCredentials();

  // Never null; never blocks for long.
  std::shared_ptr<const TlsCredentials> current() const;

  // Looks now. Ordinary threads.
  void Check();

 private:
  // What tells one content of the files from another: of each its place, size and times, or that it is not
  // there.
  using Signature = std::vector<std::vector<int64_t>>;

  ServerCredentials(const ServerTlsFiles& files, OnChange on_change)
      : files_(files), on_change_(std::move(on_change)) {}
  Signature Look() const;
  void Watch(absl::Duration interval);

  const ServerTlsFiles files_;
  Mutex check_mutex_;  // One check at a time.
  OnChange on_change_ ABSL_GUARDED_BY(check_mutex_);
  Signature seen_ ABSL_GUARDED_BY(check_mutex_);
  bool failed_ ABSL_GUARDED_BY(check_mutex_) = false;  // What was read last could not be used.

  mutable Mutex mutex_;
  CondVar changed_;
  std::shared_ptr<const TlsCredentials> current_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_TLS_SERVER_CREDENTIALS_H_
