// Long work over a real gRPC channel: joined, watched, cancelled, abandoned.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "berth/v1/images.grpc.pb.h"
#include "berth/v1/operations.grpc.pb.h"
#include "control/operations.h"
#include "control/rpc_server.h"
#include "control/services.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "image/io/progress.h"
#include "image/opener/image_roots.h"

namespace berth::control {
namespace {

using grpc::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kSize = uint64_t{256} << 20;

template <typename Detail>
Detail DetailOf(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  Detail detail;
  bool found = false;
  for (const auto& any : details.details()) found = found || any.UnpackTo(&detail);
  EXPECT_TRUE(found) << Detail::descriptor()->full_name() << " is missing: " << status.error_message();
  return detail;
}

std::string ReasonIn(const grpc::Status& status) { return DetailOf<google::rpc::ErrorInfo>(status).reason(); }

struct Context : grpc::ClientContext {
  Context() { set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30)); }
};

class OperationServiceTest : public testing::Test {
 protected:
  OperationServiceTest() {
    directory_ = "/tmp/berth-operations.XXXXXX";
    if (mkdtemp(directory_.data()) == nullptr) ADD_FAILURE() << "no temporary directory";
    roots_ = *ImageRoots::Within({directory_});
    environment_.roots = &roots_;
    environment_.operations = &operations_;
    environment_.watchers = &watchers_;
    services_.push_back(MakeImageService(environment_));
    services_.push_back(MakeOperationService(environment_));
    RpcServerOptions options;
    options.unix_paths = {directory_ + "/rpc"};
    auto server = RpcServer::Start(options, services_);
    if (!server.ok()) {
      ADD_FAILURE() << server.status();
      return;
    }
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel("unix:" + options.unix_paths[0], grpc::InsecureChannelCredentials());
    images_ = v1::ImageService::NewStub(channel_);
    stub_ = v1::OperationService::NewStub(channel_);
  }

  ~OperationServiceTest() override {
    operations_.Close();
    if (holder_.joinable()) holder_.join();
    server_->Stop(absl::Now());
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  std::string Path(const std::string& name) const { return absl::StrCat(directory_, "/", name); }

  v1::CreateImageRequest RequestFor(const std::string& operation, const std::string& file) const {
    v1::CreateImageRequest request;
    request.set_path(Path(file));
    request.set_format(v1::IMAGE_FORMAT_RAW);
    request.set_size_bytes(kSize);
    request.set_preallocate(true);
    request.set_operation_name(operation);
    return request;
  }

  grpc::Status Create(const v1::CreateImageRequest& request, v1::ImageInfo* info = nullptr) {
    Context context;
    v1::ImageInfo unused;
    return images_->CreateImage(&context, request, info == nullptr ? &unused : info);
  }

  // Runs work of the table's own under `name`, for as long as the test wants.
  void Hold(const std::string& name, const v1::CreateImageRequest& request) {
    std::atomic<bool> begun = false;
    holder_ = std::thread([this, name, request, &begun] {
      Operations::Call call;
      call.name = name;
      call.kind = v1::OPERATION_KIND_CREATE_IMAGE;
      call.subject = request.path();
      call.unit = v1::OPERATION_UNIT_BYTES;
      call.request = &request;
      v1::ImageInfo answer;
      const auto work = [this, &answer, &begun](Progress& progress) -> absl::Status {
        progress.SetTotal(100);
        begun = true;
        begun.notify_all();
        uint64_t seen = 0;
        while (!progress.cancelled() && !released_) {
          if (const uint64_t step = step_; step != seen) progress.SetDone(seen = step);
          std::this_thread::yield();
        }
        if (!released_) return absl::CancelledError("cancelled by hand");
        answer.set_path("held");
        return absl::OkStatus();
      };
      (void)operations_.Run(call, work, &answer);
    });
    begun.wait(false);
  }

  std::string directory_;
  ImageRoots roots_ = ImageRoots::Anywhere();
  WatcherSlots watchers_{2};
  Operations operations_{OperationsOptions(), &watchers_, nullptr};
  ServiceEnvironment environment_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::ImageService::Stub> images_;
  std::unique_ptr<v1::OperationService::Stub> stub_;
  std::atomic<uint64_t> step_ = 0;
  std::atomic<bool> released_ = false;
  std::thread holder_;
};

TEST_F(OperationServiceTest, PreallocationIsAnOperation) {
  v1::ImageInfo info;
  const grpc::Status status = Create(RequestFor("make", "disk"), &info);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_GE(info.allocated_bytes(), kSize);
  Context context;
  v1::GetOperationRequest get;
  get.set_name("make");
  v1::Operation shown;
  ASSERT_TRUE(stub_->GetOperation(&context, get, &shown).ok());
  EXPECT_EQ(shown.state(), v1::OPERATION_STATE_SUCCEEDED);
  EXPECT_EQ(shown.kind(), v1::OPERATION_KIND_CREATE_IMAGE);
  EXPECT_EQ(shown.unit(), v1::OPERATION_UNIT_BYTES);
  EXPECT_EQ(shown.subject(), Path("disk"));
  EXPECT_EQ(shown.done(), kSize);
  EXPECT_EQ(shown.total(), kSize);
  // The same name again is the same answer, and no work.
  ASSERT_TRUE(std::filesystem::remove(Path("disk")));
  ASSERT_TRUE(Create(RequestFor("make", "disk"), &info).ok());
  EXPECT_FALSE(std::filesystem::exists(Path("disk")));
  const grpc::Status other = Create(RequestFor("make", "other"));
  EXPECT_EQ(other.error_code(), StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(other).resource_type(), "operation");
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(other).resource_name(), "make");
  EXPECT_THAT(other.error_message(), HasSubstr("path"));
}

TEST_F(OperationServiceTest, WithoutANameNothingIsKept) {
  ASSERT_TRUE(Create(RequestFor("", "disk")).ok());
  Context context;
  v1::ListOperationsResponse all;
  ASSERT_TRUE(stub_->ListOperations(&context, v1::ListOperationsRequest(), &all).ok());
  EXPECT_EQ(all.operations_size(), 0);
}

TEST_F(OperationServiceTest, NamesAreChecked) {
  const grpc::Status status = Create(RequestFor("a/b", "disk"));
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(status).field_violations(0).field(), "operation_name");
  EXPECT_FALSE(std::filesystem::exists(Path("disk")));
  v1::Operation shown;
  {
    Context context;
    v1::GetOperationRequest get;
    get.set_name("none");
    const grpc::Status missing = stub_->GetOperation(&context, get, &shown);
    EXPECT_EQ(missing.error_code(), StatusCode::NOT_FOUND);
    EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(missing).resource_type(), "operation");
  }
  Context context;
  v1::WatchOperationRequest watch;
  watch.set_name("none");
  const auto stream = stub_->WatchOperation(&context, watch);
  EXPECT_FALSE(stream->Read(&shown));
  EXPECT_EQ(stream->Finish().error_code(), StatusCode::NOT_FOUND);
}

TEST_F(OperationServiceTest, AWatchTellsEachChangeUntilTheEnd) {
  Hold("held", RequestFor("held", "disk"));
  Context context;
  v1::WatchOperationRequest watch;
  watch.set_name("held");
  const auto stream = stub_->WatchOperation(&context, watch);
  v1::Operation shown;
  ASSERT_TRUE(stream->Read(&shown));
  EXPECT_EQ(shown.state(), v1::OPERATION_STATE_RUNNING);
  EXPECT_EQ(shown.done(), 0u);
  EXPECT_EQ(shown.total(), 100u);
  for (const uint64_t step : {7u, 50u}) {
    step_ = step;
    ASSERT_TRUE(stream->Read(&shown));
    EXPECT_EQ(shown.done(), step);
  }
  released_ = true;
  ASSERT_TRUE(stream->Read(&shown));
  EXPECT_EQ(shown.state(), v1::OPERATION_STATE_SUCCEEDED);
  EXPECT_EQ(shown.done(), 100u);
  EXPECT_FALSE(stream->Read(&shown));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(OperationServiceTest, CallsJoinAndAreCancelledTogether) {
  Hold("held", RequestFor("held", "disk"));
  grpc::Status joined;
  std::thread caller([&] { joined = Create(RequestFor("held", "disk")); });
  {
    Context context;
    v1::CancelOperationRequest cancel;
    cancel.set_name("held");
    v1::Operation shown;
    ASSERT_TRUE(stub_->CancelOperation(&context, cancel, &shown).ok());
    EXPECT_TRUE(shown.cancel_requested());
  }
  caller.join();
  EXPECT_EQ(joined.error_code(), StatusCode::CANCELLED) << joined.error_message();
  EXPECT_EQ(ReasonIn(joined), "OPERATION_CANCELLED");
  EXPECT_THAT(joined.error_message(), HasSubstr("cancelled by hand"));
  EXPECT_FALSE(std::filesystem::exists(Path("disk")));
}

TEST_F(OperationServiceTest, AJoinerThatHangsUpLeavesTheWork) {
  Hold("held", RequestFor("held", "disk"));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  v1::ImageInfo info;
  EXPECT_EQ(images_->CreateImage(&context, RequestFor("held", "disk"), &info).error_code(),
            StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(operations_.Get("held")->state(), v1::OPERATION_STATE_RUNNING);
  released_ = true;
  ASSERT_TRUE(Create(RequestFor("held", "disk"), &info).ok());
  EXPECT_EQ(info.path(), "held");
}

TEST_F(OperationServiceTest, AStopEndsJoinersAndWork) {
  Hold("held", RequestFor("held", "disk"));
  grpc::Status joined;
  std::thread caller([&] { joined = Create(RequestFor("held", "disk")); });
  operations_.Close();
  caller.join();
  EXPECT_EQ(joined.error_code(), StatusCode::UNAVAILABLE) << joined.error_message();
  EXPECT_EQ(ReasonIn(joined), "SERVER_STOPPING");
  const grpc::Status late = Create(RequestFor("late", "disk"));
  EXPECT_EQ(late.error_code(), StatusCode::UNAVAILABLE);
}

// However many ask for one file, under one name or several or none, it is made once, and all have it.
TEST_F(OperationServiceTest, ManyCallsForOneFile) {
  const std::vector<std::string> names = {"a", "a", "b", "", ""};
  std::vector<std::thread> callers;
  for (const std::string& name : names) {
    callers.emplace_back([this, name] {
      v1::ImageInfo info;
      const grpc::Status status = Create(RequestFor(name, "disk"), &info);
      EXPECT_TRUE(status.ok()) << status.error_message();
      EXPECT_GE(info.allocated_bytes(), kSize);
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(std::filesystem::file_size(Path("disk")), kSize);
}

TEST_F(OperationServiceTest, ListsComeInPages) {
  for (const char* name : {"b", "c", "a"}) ASSERT_TRUE(Create(RequestFor(name, "disk")).ok());
  v1::ListOperationsRequest request;
  request.set_page_size(2);
  std::vector<std::string> names;
  do {
    Context context;
    v1::ListOperationsResponse page;
    ASSERT_TRUE(stub_->ListOperations(&context, request, &page).ok());
    for (const v1::Operation& one : page.operations()) names.push_back(one.name());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty() && names.size() < 10);
  EXPECT_THAT(names, ElementsAre("a", "b", "c"));
}

TEST_F(OperationServiceTest, WatchersAreBounded) {
  Hold("held", RequestFor("held", "disk"));
  v1::WatchOperationRequest watch;
  watch.set_name("held");
  v1::Operation shown;
  Context contexts[3];
  const auto first = stub_->WatchOperation(&contexts[0], watch);
  const auto second = stub_->WatchOperation(&contexts[1], watch);
  ASSERT_TRUE(first->Read(&shown));
  ASSERT_TRUE(second->Read(&shown));
  const auto third = stub_->WatchOperation(&contexts[2], watch);
  EXPECT_FALSE(third->Read(&shown));
  EXPECT_EQ(ReasonIn(third->Finish()), "LIMIT_REACHED");
}

}  // namespace
}  // namespace berth::control
