#include "control/berthctl/fake_berthd.h"

#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "berth/v1/attachments.grpc.pb.h"
#include "berth/v1/exports.grpc.pb.h"
#include "berth/v1/images.grpc.pb.h"
#include "berth/v1/monitoring.grpc.pb.h"
#include "berth/v1/operations.grpc.pb.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace berth::berthctl {
namespace {

using google::protobuf::Empty;
using grpc::ServerContext;
using grpc::Status;

// What lies in `map` under `name`, or NOT_FOUND.
template <typename Value>
Status Find(const std::map<std::string, Value>& map, const std::string& name, Value* found) {
  const auto entry = map.find(name);
  if (entry == map.end())
    return Status(grpc::StatusCode::NOT_FOUND, absl::StrCat("'", name, "' does not exist"));
  *found = entry->second;
  return Status::OK;
}

// Hands each value of one page to `add`, and returns the token of the next page.
template <typename Value, typename Add>
std::string Page(const std::map<std::string, Value>& map, int size, const std::string& token,
                 const Add& add) {
  int skip = 0;
  (void)absl::SimpleAtoi(token, &skip);
  int index = 0;
  for (const auto& [name, value] : map) {
    if (index >= skip + size) return absl::StrCat(index);
    if (index++ >= skip) add(value);
  }
  return "";
}

class Exports final : public v1::ExportService::Service {
 public:
  explicit Exports(FakeBerthd& fake) : fake_(fake) {}

  Status CreateExport(ServerContext*, const v1::CreateExportRequest* request, v1::Export* made) override {
    const Status status = fake_.Begin("CreateExport", *request);
    if (!status.ok()) return status;
    made->set_name(request->name());
    *made->mutable_spec() = request->spec();
    made->set_size_bytes(uint64_t{10} << 30);
    fake_.exports[request->name()] = *made;
    return status;
  }
  Status GetExport(ServerContext*, const v1::GetExportRequest* request, v1::Export* found) override {
    const Status status = fake_.Begin("GetExport", *request);
    return status.ok() ? Find(fake_.exports, request->name(), found) : status;
  }
  Status ListExports(ServerContext*, const v1::ListExportsRequest* request,
                     v1::ListExportsResponse* response) override {
    const Status status = fake_.Begin("ListExports", *request);
    if (status.ok()) {
      response->set_next_page_token(Page(fake_.exports, fake_.page_size, request->page_token(),
                                         [&](const v1::Export& one) { *response->add_exports() = one; }));
    }
    return status;
  }
  Status UpdateExport(ServerContext*, const v1::UpdateExportRequest* request, v1::Export* changed) override {
    const Status status = fake_.Begin("UpdateExport", *request);
    return status.ok() ? Find(fake_.exports, request->name(), changed) : status;
  }
  Status DeleteExport(ServerContext*, const v1::DeleteExportRequest* request, Empty*) override {
    const Status status = fake_.Begin("DeleteExport", *request);
    v1::Export found;
    return status.ok() ? Find(fake_.exports, request->name(), &found) : status;
  }

 private:
  FakeBerthd& fake_;
};

class Attachments final : public v1::AttachmentService::Service {
 public:
  explicit Attachments(FakeBerthd& fake) : fake_(fake) {}

  Status Attach(ServerContext*, const v1::AttachRequest* request, v1::Attachment* made) override {
    const Status status = fake_.Begin("Attach", *request);
    if (!status.ok()) return status;
    made->set_name(request->name());
    *made->mutable_spec() = request->spec();
    made->set_device(request->spec().device().empty() ? "/dev/nbd0" : request->spec().device());
    made->set_state(v1::ATTACHMENT_STATE_ATTACHED);
    fake_.attachments[request->name()] = *made;
    return status;
  }
  Status Detach(ServerContext*, const v1::DetachRequest* request, Empty*) override {
    const Status status = fake_.Begin("Detach", *request);
    v1::Attachment found;
    return status.ok() ? Find(fake_.attachments, request->name(), &found) : status;
  }
  Status GetAttachment(ServerContext*, const v1::GetAttachmentRequest* request,
                       v1::Attachment* found) override {
    const Status status = fake_.Begin("GetAttachment", *request);
    return status.ok() ? Find(fake_.attachments, request->name(), found) : status;
  }
  Status ListAttachments(ServerContext*, const v1::ListAttachmentsRequest* request,
                         v1::ListAttachmentsResponse* response) override {
    const Status status = fake_.Begin("ListAttachments", *request);
    if (status.ok()) {
      response->set_next_page_token(
          Page(fake_.attachments, fake_.page_size, request->page_token(),
               [&](const v1::Attachment& one) { *response->add_attachments() = one; }));
    }
    return status;
  }

 private:
  FakeBerthd& fake_;
};

class Images final : public v1::ImageService::Service {
 public:
  explicit Images(FakeBerthd& fake) : fake_(fake) {}

  Status CreateImage(ServerContext*, const v1::CreateImageRequest* request, v1::ImageInfo* made) override {
    const Status status = fake_.Begin("CreateImage", *request);
    if (!status.ok()) return status;
    made->set_path(request->path());
    made->set_format(request->format());
    made->set_size_bytes(request->size_bytes());
    fake_.images[request->path()] = *made;
    if (request->preallocate() && !fake_.progress.empty() &&
        fake_.WaitForOperation().state() == v1::OPERATION_STATE_CANCELLED) {
      return Status(grpc::StatusCode::CANCELLED, "cancelled half way");
    }
    return status;
  }
  Status InspectImage(ServerContext*, const v1::InspectImageRequest* request, v1::ImageInfo* found) override {
    const Status status = fake_.Begin("InspectImage", *request);
    return status.ok() ? Find(fake_.images, request->path(), found) : status;
  }
  Status ResizeImage(ServerContext*, const v1::ResizeImageRequest* request, v1::ImageInfo* changed) override {
    const Status status = fake_.Begin("ResizeImage", *request);
    return status.ok() ? Find(fake_.images, request->path(), changed) : status;
  }

 private:
  FakeBerthd& fake_;
};

class OperationsService final : public v1::OperationService::Service {
 public:
  explicit OperationsService(FakeBerthd& fake) : fake_(fake) {}

  Status GetOperation(ServerContext*, const v1::GetOperationRequest* request, v1::Operation* found) override {
    const Status status = fake_.Begin("GetOperation", *request);
    return status.ok() ? Find(fake_.operations, request->name(), found) : status;
  }
  Status ListOperations(ServerContext*, const v1::ListOperationsRequest* request,
                        v1::ListOperationsResponse* response) override {
    const Status status = fake_.Begin("ListOperations", *request);
    if (status.ok()) {
      response->set_next_page_token(
          Page(fake_.operations, fake_.page_size, request->page_token(),
               [&](const v1::Operation& one) { *response->add_operations() = one; }));
    }
    return status;
  }
  Status WatchOperation(ServerContext*, const v1::WatchOperationRequest* request,
                        grpc::ServerWriter<v1::Operation>* writer) override {
    const Status status = fake_.Begin("WatchOperation", *request);
    if (!status.ok()) return status;
    for (const v1::Operation& now : fake_.progress) writer->Write(now);
    if (!fake_.progress.empty() && fake_.progress.back().state() == v1::OPERATION_STATE_RUNNING) {
      writer->Write(fake_.WaitForOperation());
    }
    return status;
  }
  Status CancelOperation(ServerContext*, const v1::CancelOperationRequest* request,
                         v1::Operation* found) override {
    const Status status = fake_.Begin("CancelOperation", *request);
    if (!status.ok()) return status;
    fake_.CancelOperation();
    if (!fake_.progress.empty()) *found = fake_.progress.back();
    return status;
  }

 private:
  FakeBerthd& fake_;
};

class Monitoring final : public v1::MonitoringService::Service {
 public:
  explicit Monitoring(FakeBerthd& fake) : fake_(fake) {}

  Status WatchEvents(ServerContext*, const v1::WatchEventsRequest* request,
                     grpc::ServerWriter<v1::Event>* writer) override {
    const Status status = fake_.Begin("WatchEvents", *request);
    if (!status.ok()) return status;
    for (const v1::Event& event : fake_.events) writer->Write(event);
    return status;
  }
  Status GetStatistics(ServerContext*, const v1::GetStatisticsRequest* request,
                       v1::GetStatisticsResponse* response) override {
    const Status status = fake_.Begin("GetStatistics", *request);
    if (!status.ok() || fake_.statistics.empty()) return status;
    *response = fake_.statistics.front();
    if (fake_.statistics.size() > 1) fake_.statistics.erase(fake_.statistics.begin());
    return status;
  }

 private:
  FakeBerthd& fake_;
};

}  // namespace

FakeBerthd::FakeBerthd() {
  // Not below TEST_TMPDIR, which may be longer than a socket's address.
  char directory[] = "/tmp/berthctl.XXXXXX";
  if (mkdtemp(directory) == nullptr) std::abort();
  directory_ = directory;
  endpoint_ = absl::StrCat("unix:", directory_, "/s");
  services_.push_back(std::make_unique<Exports>(*this));
  services_.push_back(std::make_unique<Attachments>(*this));
  services_.push_back(std::make_unique<Images>(*this));
  services_.push_back(std::make_unique<OperationsService>(*this));
  services_.push_back(std::make_unique<Monitoring>(*this));
  grpc::ServerBuilder builder;
  builder.AddListeningPort(endpoint_, grpc::InsecureServerCredentials());
  for (const std::unique_ptr<grpc::Service>& service : services_) builder.RegisterService(service.get());
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) std::abort();
}

FakeBerthd::~FakeBerthd() {
  EndOperation();
  server_->Shutdown();
  server_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

void FakeBerthd::FailNext(grpc::Status status) {
  MutexLock lock(&mutex_);
  failure_ = std::move(status);
}

int FakeBerthd::calls() const {
  MutexLock lock(&mutex_);
  return calls_;
}

std::string FakeBerthd::last_request() const {
  MutexLock lock(&mutex_);
  return last_request_;
}

void FakeBerthd::EndOperation() {
  {
    MutexLock lock(&mutex_);
    operation_ended_ = true;
  }
  changed_.SignalAll();
}

void FakeBerthd::CancelOperation() {
  {
    MutexLock lock(&mutex_);
    operation_cancelled_ = true;
  }
  changed_.SignalAll();
}

bool FakeBerthd::operation_cancelled() const {
  MutexLock lock(&mutex_);
  return operation_cancelled_;
}

v1::Operation FakeBerthd::WaitForOperation() {
  MutexLock lock(&mutex_);
  while (!operation_ended_ && !operation_cancelled_) changed_.Wait(&mutex_);
  v1::Operation end = progress.back();
  end.set_state(operation_cancelled_ ? v1::OPERATION_STATE_CANCELLED : v1::OPERATION_STATE_SUCCEEDED);
  return end;
}

grpc::Status FakeBerthd::Begin(const char* method, const google::protobuf::Message& request) {
  MutexLock lock(&mutex_);
  ++calls_;
  last_request_ = absl::StrCat(method, " ", request.ShortDebugString());
  return std::exchange(failure_, std::nullopt).value_or(grpc::Status::OK);
}

}  // namespace berth::berthctl
