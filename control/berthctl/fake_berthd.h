// FakeBerthd: the services of berth.v1 over a Unix socket, with no more behind them than maps.
#ifndef BERTH_CONTROL_BERTHCTL_FAKE_BERTHD_H_
#define BERTH_CONTROL_BERTHCTL_FAKE_BERTHD_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "berth/v1/attachments.pb.h"
#include "berth/v1/exports.pb.h"
#include "berth/v1/images.pb.h"
#include "berth/v1/monitoring.pb.h"
#include "berth/v1/operations.pb.h"
#include "grpcpp/server.h"
#include "grpcpp/support/status.h"
#include "image/io/mutex.h"

namespace berth::berthctl {

// Thread-safe where it says so; the rest is set before a call and read after it.
class FakeBerthd {
 public:
  // Makes a socket in a directory of its own.
  FakeBerthd();
  ~FakeBerthd();
  FakeBerthd(const FakeBerthd&) = delete;
  FakeBerthd& operator=(const FakeBerthd&) = delete;

  // "unix:PATH".
  const std::string& endpoint() const { return endpoint_; }

  // The next call answers this, and does nothing.
  void FailNext(grpc::Status status);
  // How often a call came, and what the last one sent: "CreateExport name: \"disk\" …". Thread-safe.
  int calls() const;
  std::string last_request() const;

  std::map<std::string, v1::Export> exports;
  std::map<std::string, v1::Attachment> attachments;
  std::map<std::string, v1::ImageInfo> images;
  // The answers of GetStatistics, one after the other; the last stays.
  std::vector<v1::GetStatisticsResponse> statistics;
  std::vector<v1::Event> events;
  std::map<std::string, v1::Operation> operations;
  // What WatchOperation answers, one after the other. Where the last one still runs, the stream stays open,
  // and a CreateImage that preallocates does not return, until the operation is cancelled or EndOperation().
  std::vector<v1::Operation> progress;
  // Lets go what `progress` holds. Thread-safe.
  void EndOperation();
  // Whether a CancelOperation came. Thread-safe.
  bool operation_cancelled() const;

  // At most so many in a page, whatever was asked for.
  int page_size = 1000;

  // For the services: waits for EndOperation(), a CancelOperation, or the end of the server; returns the
  // operation as it then is.
  v1::Operation WaitForOperation();
  void CancelOperation();

  // For the services: notes the request, and says whether the call is to fail.
  grpc::Status Begin(const char* method, const google::protobuf::Message& request);

 private:
  mutable Mutex mutex_;
  std::optional<grpc::Status> failure_ ABSL_GUARDED_BY(mutex_);
  int calls_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string last_request_ ABSL_GUARDED_BY(mutex_);
  CondVar changed_;
  bool operation_ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool operation_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::string directory_;
  std::string endpoint_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_FAKE_BERTHD_H_
