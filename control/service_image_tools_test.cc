// Checking, converting and mapping images over a real gRPC channel, with qemu-img as the judge.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "berth/v1/image_tools.grpc.pb.h"
#include "control/operations.h"
#include "control/rpc_server.h"
#include "control/services.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "image/opener/image_roots.h"
#include "image/opener/opener.h"
#include "tests/interop/program.h"
#include "tests/interop/temporary_directory.h"

namespace berth::control {
namespace {

using berth::testing::RandomBytes;
using berth::testing::ReadFile;
using berth::testing::RunToSuccess;
using berth::testing::WriteFile;
using grpc::StatusCode;
using ::testing::HasSubstr;

constexpr size_t kMebibyte = size_t{1} << 20;

struct Context : grpc::ClientContext {
  Context() { set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60)); }
};

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

std::string FieldIn(const grpc::Status& status) {
  return DetailOf<google::rpc::BadRequest>(status).field_violations(0).field();
}

std::string ReasonIn(const grpc::Status& status) { return DetailOf<google::rpc::ErrorInfo>(status).reason(); }

class ImageToolServiceTest : public ::testing::Test {
 protected:
  ImageToolServiceTest() {
    roots_ = *ImageRoots::Within({directory_.path()});
    environment_.roots = &roots_;
    environment_.secret_roots = &roots_;
    environment_.operations = &operations_;
    environment_.watchers = &watchers_;
    services_.push_back(MakeImageToolService(environment_));
    RpcServerOptions options;
    // Short, as a socket's name has to be.
    EXPECT_NE(mkdtemp(socket_directory_.data()), nullptr);
    options.unix_paths = {socket_directory_ + "/rpc"};
    auto server = RpcServer::Start(options, services_);
    if (!server.ok()) {
      ADD_FAILURE() << server.status();
      return;
    }
    server_ = *std::move(server);
    stub_ = v1::ImageToolService::NewStub(
        grpc::CreateChannel("unix:" + options.unix_paths[0], grpc::InsecureChannelCredentials()));
  }
  ~ImageToolServiceTest() override {
    operations_.Close();
    server_->Stop(absl::Now());
    std::error_code ignored;
    std::filesystem::remove_all(socket_directory_, ignored);
  }

  std::string Path(const std::string& name) const { return directory_.Path(name); }

  // A raw disk with data, a hole, and zeroes that are data.
  std::string RawDisk(const std::string& name) {
    const std::string content =
        RandomBytes(3 * kMebibyte, 1) + std::string(5 * kMebibyte, '\0') + RandomBytes(kMebibyte + 1536, 2);
    WriteFile(Path(name), content);
    return content;
  }

  v1::ConvertImageRequest Conversion(const std::string& from, v1::ImageFormat from_format,
                                     const std::string& to, v1::ImageFormat to_format) const {
    v1::ConvertImageRequest request;
    request.mutable_source()->set_path(Path(from));
    request.mutable_source()->set_format(from_format);
    request.mutable_target()->set_path(Path(to));
    request.mutable_target()->set_format(to_format);
    return request;
  }

  grpc::Status Convert(const v1::ConvertImageRequest& request, v1::ImageInfo* info = nullptr) {
    Context context;
    v1::ImageInfo unused;
    return stub_->ConvertImage(&context, request, info == nullptr ? &unused : info);
  }

  grpc::Status Check(const std::string& name, v1::ImageRepair repair, v1::CheckImageResponse* answer) {
    Context context;
    v1::CheckImageRequest request;
    request.set_path(Path(name));
    request.set_format(v1::IMAGE_FORMAT_QCOW2);
    request.set_repair(repair);
    return stub_->CheckImage(&context, request, answer);
  }

  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

  berth::testing::TemporaryDirectory directory_;
  std::string socket_directory_ = "/tmp/berth-tools.XXXXXX";
  ImageRoots roots_ = ImageRoots::Anywhere();
  WatcherSlots watchers_{2};
  Operations operations_{OperationsOptions(), &watchers_, nullptr};
  ServiceEnvironment environment_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::ImageToolService::Stub> stub_;
};

TEST_F(ImageToolServiceTest, ThereAndBackAgain) {
  const std::string content = RawDisk("disk");
  v1::ConvertImageRequest there = Conversion("disk", v1::IMAGE_FORMAT_RAW, "image", v1::IMAGE_FORMAT_QCOW2);
  there.mutable_target()->mutable_qcow2()->set_cluster_size_bytes(4096);
  there.set_operation_name("there");
  v1::ImageInfo info;
  const grpc::Status status = Convert(there, &info);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(info.path(), Path("image"));
  EXPECT_EQ(info.size_bytes(), content.size());
  EXPECT_EQ(info.qcow2().cluster_size_bytes(), 4096);
  EXPECT_LT(info.allocated_bytes(), 5 * kMebibyte);
  RunToSuccess({"qemu-img", "check", "-f", "qcow2", Path("image")});
  RunToSuccess({"qemu-img", "compare", "-f", "raw", "-F", "qcow2", Path("disk"), Path("image")});
  const grpc::Status back =
      Convert(Conversion("image", v1::IMAGE_FORMAT_QCOW2, "copy", v1::IMAGE_FORMAT_RAW), &info);
  ASSERT_TRUE(back.ok()) << back.error_message();
  EXPECT_LT(info.allocated_bytes(), 5 * kMebibyte);
  EXPECT_TRUE(ReadFile(Path("copy")) == content);
  // The operation keeps its answer, and its progress is that of the data.
  const auto operation = operations_.Get("there");
  ASSERT_TRUE(operation.ok());
  EXPECT_EQ(operation->kind(), v1::OPERATION_KIND_CONVERT_IMAGE);
  EXPECT_EQ(operation->done(), operation->total());
}

TEST_F(ImageToolServiceTest, ALargerTargetReadsAsZeroesBehindTheSource) {
  std::string content = RawDisk("disk");
  v1::ConvertImageRequest request = Conversion("disk", v1::IMAGE_FORMAT_RAW, "copy", v1::IMAGE_FORMAT_RAW);
  request.mutable_target()->set_size_bytes(content.size() + kMebibyte);
  ASSERT_TRUE(Convert(request).ok());
  content.append(kMebibyte, '\0');
  EXPECT_TRUE(ReadFile(Path("copy")) == content);
  request.mutable_target()->set_size_bytes(kMebibyte);
  request.mutable_target()->set_path(Path("small"));
  EXPECT_EQ(FieldIn(Convert(request)), "target.size_bytes");
}

TEST_F(ImageToolServiceTest, NothingIsReplacedAndNothingIsLeftBehind) {
  RawDisk("disk");
  WriteFile(Path("taken"), "mine");
  const grpc::Status taken =
      Convert(Conversion("disk", v1::IMAGE_FORMAT_RAW, "taken", v1::IMAGE_FORMAT_QCOW2));
  EXPECT_EQ(taken.error_code(), StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(taken).resource_name(), Path("taken"));
  EXPECT_EQ(ReadFile(Path("taken")), "mine");
  const grpc::Status missing =
      Convert(Conversion("none", v1::IMAGE_FORMAT_RAW, "image", v1::IMAGE_FORMAT_QCOW2));
  EXPECT_EQ(missing.error_code(), StatusCode::NOT_FOUND);
  EXPECT_THAT(Files(), ::testing::UnorderedElementsAre("disk", "taken"));
}

TEST_F(ImageToolServiceTest, RequestsAreChecked) {
  RawDisk("disk");
  const v1::ConvertImageRequest good =
      Conversion("disk", v1::IMAGE_FORMAT_RAW, "image", v1::IMAGE_FORMAT_QCOW2);
  v1::ConvertImageRequest bad = good;
  bad.mutable_source()->set_path("disk");
  EXPECT_EQ(FieldIn(Convert(bad)), "source.path");
  bad = good;
  bad.mutable_target()->clear_format();
  EXPECT_EQ(FieldIn(Convert(bad)), "target.format");
  bad = good;
  bad.mutable_target()->set_path("");
  EXPECT_EQ(FieldIn(Convert(bad)), "target.path");
  bad = good;
  bad.mutable_target()->mutable_qcow2()->set_backing_file("disk");
  EXPECT_EQ(FieldIn(Convert(bad)), "target.qcow2.backing_file");
  bad = good;
  bad.mutable_target()->mutable_qcow2()->set_cluster_size_bytes(1000);
  EXPECT_THAT(Convert(bad).error_message(), HasSubstr("1000"));
  bad = good;
  bad.set_sparse_bytes(1000);
  EXPECT_EQ(FieldIn(Convert(bad)), "sparse_bytes");
  bad = good;
  bad.set_operation_name("a/b");
  EXPECT_EQ(FieldIn(Convert(bad)), "operation_name");
  Context context;
  v1::CheckImageRequest check;
  check.set_path(Path("disk"));
  check.set_format(v1::IMAGE_FORMAT_RAW);
  v1::CheckImageResponse unused;
  EXPECT_EQ(FieldIn(stub_->CheckImage(&context, check, &unused)), "format");
  EXPECT_EQ(Check("disk", v1::IMAGE_REPAIR_NONE, &unused).error_code(), StatusCode::INVALID_ARGUMENT);
}

TEST_F(ImageToolServiceTest, LeaksAreFoundAndMended) {
  RunToSuccess({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", Path("image"), "1M"});
  // The count of a cluster far behind the end; the first refcount block is the third cluster.
  std::string bytes = ReadFile(Path("image"));
  bytes[2 * 4096 + 2 * 100 + 1] = 1;
  WriteFile(Path("image"), bytes);
  v1::CheckImageResponse found;
  ASSERT_TRUE(Check("image", v1::IMAGE_REPAIR_NONE, &found).ok());
  EXPECT_EQ(found.leaks(), 1);
  EXPECT_THAT(found.findings(0), HasSubstr("the cluster at offset 409600 has 0 references and a count of 1"));
  {
    // Somebody has it open: it can be looked at by nobody who would change it.
    ImageSpec reader;
    reader.format = ImageFormat::kQcow2;
    reader.path = Path("image");
    reader.read_only = true;
    const auto held = OpenImage(reader, roots_);
    ASSERT_TRUE(held.ok()) << held.status();
    EXPECT_TRUE(Check("image", v1::IMAGE_REPAIR_NONE, &found).ok());
    EXPECT_EQ(ReasonIn(Check("image", v1::IMAGE_REPAIR_ALL, &found)), "IMAGE_LOCKED");
  }
  ASSERT_TRUE(Check("image", v1::IMAGE_REPAIR_ALL, &found).ok());
  EXPECT_EQ(found.leaks(), 0);
  EXPECT_EQ(found.leaks_fixed(), 1);
  RunToSuccess({"qemu-img", "check", "-f", "qcow2", Path("image")});
}

TEST_F(ImageToolServiceTest, TheMapComesInPages) {
  const std::string content = RawDisk("disk");
  ASSERT_TRUE(Convert(Conversion("disk", v1::IMAGE_FORMAT_RAW, "image", v1::IMAGE_FORMAT_QCOW2)).ok());
  v1::MapImageRequest request;
  request.mutable_image()->set_path(Path("image"));
  request.mutable_image()->set_format(v1::IMAGE_FORMAT_QCOW2);
  request.set_page_size(1);
  std::vector<std::string> runs;
  do {
    Context context;
    v1::MapImageResponse page;
    const grpc::Status status = stub_->MapImage(&context, request, &page);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ASSERT_EQ(page.extents_size(), 1);
    EXPECT_EQ(page.size_bytes(), content.size());
    const v1::MappedExtent& extent = page.extents(0);
    runs.push_back(
        absl::StrCat(extent.offset_bytes(), "+", extent.length_bytes(), extent.zero() ? " zero" : ""));
    request.set_offset_bytes(page.next_offset_bytes());
  } while (request.offset_bytes() != 0);
  EXPECT_THAT(runs, ::testing::ElementsAre("0+3145728", "3145728+5242880 zero",
                                           absl::StrCat("8388608+", content.size() - 8388608)));
  request.set_offset_bytes(content.size() + 1);
  Context context;
  v1::MapImageResponse page;
  EXPECT_EQ(FieldIn(stub_->MapImage(&context, request, &page)), "offset_bytes");
}

}  // namespace
}  // namespace berth::control
