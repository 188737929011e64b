// BerthdProcess: the real berthd, as a process with a directory of its own, for tests.
#ifndef BERTH_CONTROL_BERTHD_PROCESS_H_
#define BERTH_CONTROL_BERTHD_PROCESS_H_

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>
#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "berth/v1/attachments.grpc.pb.h"
#include "berth/v1/exports.grpc.pb.h"
#include "berth/v1/images.grpc.pb.h"
#include "berth/v1/monitoring.grpc.pb.h"
#include "image/io/unique_fd.h"

namespace berth::control {

// What a program left behind.
struct ProcessResult {
  int exit_code = -1;  // 128 + the signal where one ended it.
  std::string output;  // Standard output and error.
};

// Runs a program to its end, or kills it after `at_most`.
ProcessResult RunProcess(const std::vector<std::string>& command, absl::Duration at_most = absl::Seconds(30));

// The berthd under test, in the test's runfiles.
std::string BerthdPath();

// Not thread-safe. Every wait has a deadline, after which an expectation fails. The destructor kills what
// still runs and removes the directory.
class BerthdProcess {
 public:
  // The flags of Start() come after these: --listen, --state-dir, --image-root, --nbd, all in directory().
  BerthdProcess();
  BerthdProcess(const BerthdProcess&) = delete;
  BerthdProcess& operator=(const BerthdProcess&) = delete;
  ~BerthdProcess();

  // Returns when berthd said that it is ready. False, with a failed expectation, where it does not.
  bool Start(const std::vector<std::string>& flags = {});
  // The same without waiting for anything.
  void Launch(const std::vector<std::string>& flags = {});
  // Sends `signal` and returns the exit code, as in ProcessResult.
  int Stop(int signal = 15);

  pid_t pid() const { return pid_; }
  const std::string& directory() const { return directory_; }
  std::string rpc_path() const { return directory_ + "/rpc.sock"; }
  std::string state_directory() const { return directory_ + "/state"; }
  // For NBD clients.
  std::string Uri(const std::string& export_name) const;
  // Everything that it wrote to standard error.
  std::string log() const;

  std::shared_ptr<grpc::Channel> channel() const;

  // One call each, with a deadline.
  grpc::Status CreateRawImage(const std::string& file, uint64_t size);
  grpc::Status CreateRawExport(const std::string& name, const std::string& file);
  grpc::Status Attach(const std::string& name, const std::string& export_name, v1::Attachment* attachment,
                      v1::AttachmentSpec spec = {});
  grpc::Status Detach(const std::string& name, bool force = false);
  grpc::Status GetAttachment(const std::string& name, v1::Attachment* attachment);
  grpc::Status Resize(const std::string& export_name, uint64_t size);

 private:
  bool WaitUntilReady();

  std::string directory_;
  pid_t pid_ = -1;
  UniqueFd pidfd_;
  UniqueFd notify_;
};

// The reason in a status' google.rpc.ErrorInfo, or an empty string.
std::string ReasonOf(const grpc::Status& status);

}  // namespace berth::control

#endif  // BERTH_CONTROL_BERTHD_PROCESS_H_
